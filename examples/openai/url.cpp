// SPDX-License-Identifier: BSL-1.0
#include "url.hpp"

#include <boost/asio/ip/address.hpp>
#include <boost/asio/ip/network_v4.hpp>
#include <boost/asio/ip/network_v6.hpp>
#include <boost/system/error_code.hpp>

#include <algorithm>
#include <charconv>
#include <cstdint>
#include <cstdlib>
#include <iterator>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace asio = boost::asio;

namespace openai {
namespace {

constexpr std::size_t max_shown = 200;
constexpr std::size_t max_host = 253;

bool is_visible(char c) { return c > ' ' && c <= '~'; }

std::string lower(std::string_view text) {
    std::string result(text);
    std::ranges::transform(result, result.begin(),
                           [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
    return result;
}

// The text for an error, without what may be a password or a key in it.
std::string shown(std::string_view text) {
    std::string result;
    if (const auto at = text.rfind('@'); at != std::string_view::npos) {
        result = "***";
        text.remove_prefix(at);
    }
    const auto query = std::min(text.find_first_of("?#"), text.size());
    std::ranges::transform(text.substr(0, std::min(query, max_shown)), std::back_inserter(result),
                           [](char c) { return is_visible(c) ? c : '?'; });
    return result + (query < text.size() || text.size() > max_shown ? "..." : "");
}

[[noreturn]] void refuse(std::string_view text, std::string_view why) {
    throw std::invalid_argument("'" + shown(text) + "': " + std::string(why));
}

std::string read_port(std::string_view text, std::string_view port) {
    std::uint16_t number = 0;
    const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), number);
    if (error != std::errc() || end != port.data() + port.size() || number == 0) {
        refuse(text, "the port must be a number from 1 to 65535");
    }
    return std::to_string(number);
}

std::string read_host(std::string_view text, std::string_view host) {
    constexpr std::string_view allowed = "abcdefghijklmnopqrstuvwxyz0123456789.-_";
    std::string name = lower(host);
    if (name.empty() || name.size() > max_host || name.find_first_not_of(allowed) != std::string::npos) {
        refuse(text, "the host must be a name or an address of at most 253 letters, digits, dots and hyphens");
    }
    return name;
}

std::string read_bracketed(std::string_view text, std::string_view address) {
    boost::system::error_code error;
    const auto parsed = asio::ip::make_address_v6(address, error);
    if (error || address.find('%') != std::string_view::npos) {
        refuse(text, "what is in brackets must be an IPv6 address without a zone");
    }
    return parsed.to_string();
}

std::string variable(const std::string& name) {
    const char* const value = std::getenv(name.c_str());  // NOLINT(concurrency-mt-unsafe): nothing here writes to it
    return value == nullptr ? "" : value;
}

std::string upper(std::string name) {
    std::ranges::transform(name, name.begin(),
                           [](char c) { return c >= 'a' && c <= 'z' ? static_cast<char>(c - 'a' + 'A') : c; });
    return name;
}

// Whether `entry` is a network such as 10.0.0.0/8 that has the address `host` in it.
bool in_network(const std::string& entry, const std::string& host) {
    boost::system::error_code no_address;
    const auto address = asio::ip::make_address(host, no_address);
    if (no_address) {
        return false;
    }
    boost::system::error_code error;
    if (address.is_v4()) {
        const auto network = asio::ip::make_network_v4(entry, error);
        return !error &&
               asio::ip::network_v4(address.to_v4(), network.prefix_length()).canonical() == network.canonical();
    }
    const auto network = asio::ip::make_network_v6(entry, error);
    return !error && asio::ip::network_v6(address.to_v6(), network.prefix_length()).canonical() == network.canonical();
}

// An entry is a name that stands for its subdomains as well, an address, a network or `*`; it may have a port.
bool exempts(std::string entry, const Url& url) {
    if (entry == "*" || entry == url.host || in_network(entry, url.host)) {
        return true;
    }
    if (const auto port = ":" + url.port; entry.ends_with(port)) {
        entry.resize(entry.size() - port.size());
    }
    if (entry.starts_with('[') && entry.ends_with(']')) {
        entry = entry.substr(1, entry.size() - 2);
    }
    entry.erase(0, std::min(entry.find_first_not_of("*."), entry.size()));
    return !entry.empty() && (url.host == entry || url.host.ends_with("." + entry));
}

bool exempt(const Url& url) {
    const std::string lower_case = variable("no_proxy");
    const std::string list = lower(lower_case.empty() ? variable("NO_PROXY") : lower_case);
    constexpr std::string_view separators = ", \t";
    for (std::size_t begin = list.find_first_not_of(separators); begin != std::string::npos;) {
        const std::size_t end = std::min(list.find_first_of(separators, begin), list.size());
        if (exempts(list.substr(begin, end - begin), url)) {
            return true;
        }
        begin = list.find_first_not_of(separators, end);
    }
    return false;
}

}  // namespace

Url parse_url(std::string_view text) {
    if (!std::ranges::all_of(text, is_visible)) {
        refuse(text, "a URL has no spaces, control characters or bytes that are not ASCII");
    }
    Url url;
    const auto colon = std::min(text.find("://"), text.size());
    const std::string scheme = lower(text.substr(0, colon));
    if (colon == text.size() || (scheme != "http" && scheme != "https")) {
        refuse(text, "the URL must begin with http:// or https://");
    }
    url.tls = scheme == "https";

    std::string_view rest = text.substr(colon + 3);
    const auto slash = std::min(rest.find_first_of("/?#"), rest.size());
    const std::string_view server = rest.substr(0, slash);
    rest.remove_prefix(slash);
    if (server.find('@') != std::string_view::npos) {
        refuse(text, "a user name or a key does not belong in the URL");
    }
    if (rest.find_first_of("?#") != std::string_view::npos) {
        refuse(text, "a base URL has no query and no fragment");
    }

    const bool bracketed = server.starts_with('[');
    const auto host_end = std::min(bracketed ? server.find(']') : server.find(':'), server.size());
    if (bracketed && host_end == server.size()) {
        refuse(text, "the bracket before the IPv6 address is not closed");
    }
    url.host =
        bracketed ? read_bracketed(text, server.substr(1, host_end - 1)) : read_host(text, server.substr(0, host_end));
    const std::string_view port = server.substr(host_end + (bracketed ? 1 : 0));
    if (port.empty()) {
        url.port = url.tls ? "443" : "80";
    } else if (port.starts_with(':')) {
        url.port = read_port(text, port.substr(1));
    } else {
        refuse(text, "after the brackets there must be a port or a path");
    }
    url.path = rest.substr(0, rest.find_last_not_of('/') + 1);
    return url;
}

std::string authority(const Url& url) {
    const bool v6 = url.host.find(':') != std::string::npos;
    return (v6 ? "[" + url.host + "]" : url.host) + ":" + url.port;
}

bool is_loopback(const std::string& host) {
    boost::system::error_code error;
    const auto address = asio::ip::make_address(host, error);
    return error ? host == "localhost" : address.is_loopback();
}

void refuse_proxy(const Url& url) {
    if (is_loopback(url.host)) {
        return;
    }
    for (const std::string& name : {std::string(url.tls ? "https_proxy" : "http_proxy"), std::string("all_proxy")}) {
        for (const std::string& spelling : {name, upper(name)}) {
            if (!variable(spelling).empty() && !exempt(url)) {
                throw std::runtime_error("the environment variable " + spelling + " names a proxy for " +
                                         authority(url) +
                                         ", but this client cannot use one: unset it, or add the host to no_proxy");
            }
        }
    }
}

}  // namespace openai
