// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <chrono>
#include <cstddef>
#include <string>

namespace openai {

/// What an HttpClient does with its connections. The timeouts are from 1 ns to 24 h.
struct HttpOptions {
    std::chrono::nanoseconds connect_timeout = std::chrono::seconds(5);      ///< Name, TCP and TLS together.
    std::chrono::nanoseconds first_byte_timeout = std::chrono::minutes(10);  ///< For the request and the header.
    std::chrono::nanoseconds idle_timeout = std::chrono::seconds(60);        ///< Between two pieces of the body.
    std::size_t max_idle = 100;                                              ///< How many unused connections are kept.
    std::size_t max_body = std::size_t{256} << 20;                           ///< The longest body, in bytes.
    std::string ca_file = {};                                                ///< Certificates to trust as well, PEM.
    std::string bearer_token = {};  ///< Sent in each request, and shown nowhere; none if empty.
};

}  // namespace openai
