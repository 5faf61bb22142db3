// SPDX-License-Identifier: BSL-1.0
// Boost.JSON without its library: its source, compiled once.
#include <boost/json/src.hpp>
