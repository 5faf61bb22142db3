// SPDX-License-Identifier: BSL-1.0
// Boost.JSON without its library: compiled here once.
#include <boost/json/src.hpp>
