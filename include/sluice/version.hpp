// SPDX-License-Identifier: BSL-1.0
#pragma once

/// The version of sluice: major * 10000 + minor * 100 + patch. Before 1.0, any minor version may change the interface,
/// and no version promises a stable ABI.
#define SLUICE_VERSION 200
