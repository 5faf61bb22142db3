// SPDX-License-Identifier: BSL-1.0
#include <openai/client.hpp>
#include <openai/url.hpp>

#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace asio = boost::asio;
using Catch::Matchers::ContainsSubstring;

namespace {

std::string why_url_is_refused(std::string_view text) {
    try {
        openai::parse_url(text);
    } catch (const std::invalid_argument& error) {
        return error.what();
    }
    return "";
}

// Sets the variables for proxies, and no others of them, until it is destroyed.
class ProxyEnvironment {
public:
    explicit ProxyEnvironment(const std::map<std::string, std::string>& variables) {
        clear();
        for (const auto& [name, value] : variables) {
            ::setenv(name.c_str(), value.c_str(), 1);
        }
    }
    ProxyEnvironment(const ProxyEnvironment&) = delete;
    ProxyEnvironment& operator=(const ProxyEnvironment&) = delete;
    ~ProxyEnvironment() { clear(); }

private:
    static void clear() {
        for (const char* name : {"http_proxy", "HTTP_PROXY", "https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY",
                                 "no_proxy", "NO_PROXY"}) {
            ::unsetenv(name);
        }
    }
};

std::string why_proxy_is_refused(const std::string& url, const std::map<std::string, std::string>& variables) {
    const ProxyEnvironment environment(variables);
    try {
        openai::refuse_proxy(openai::parse_url(url));
    } catch (const std::runtime_error& error) {
        return error.what();
    }
    return "";
}

bool is_exempt(const std::string& url, const std::string& no_proxy) {
    return why_proxy_is_refused(url, {{"all_proxy", "http://proxy:1"}, {"no_proxy", no_proxy}}).empty();
}

}  // namespace

TEST_CASE("A URL is read in parts") {
    struct Case {
        std::string text;
        bool tls;
        std::string host;
        std::string port;
        std::string path;
    };
    const auto expected = GENERATE(Case{"http://127.0.0.1:8080/v1", false, "127.0.0.1", "8080", "/v1"},
                                   Case{"https://api.example.com/v1", true, "api.example.com", "443", "/v1"},
                                   Case{"http://localhost", false, "localhost", "80", ""},
                                   Case{"http://localhost/", false, "localhost", "80", ""},
                                   Case{"HTTPS://Api.Example.COM:8443/A/b//", true, "api.example.com", "8443", "/A/b"},
                                   Case{"http://[::1]:8080/v1/", false, "::1", "8080", "/v1"},
                                   Case{"https://[2001:DB8::0:1]", true, "2001:db8::1", "443", ""},
                                   Case{"http://my_host-1:065535/~x/%20@y", false, "my_host-1", "65535", "/~x/%20@y"});
    const openai::Url url = openai::parse_url(expected.text);
    CHECK(url.tls == expected.tls);
    CHECK(url.host == expected.host);
    CHECK(url.port == expected.port);
    CHECK(url.path == expected.path);
}

TEST_CASE("What is no base URL is refused, and named") {
    const auto [text, why] = GENERATE(
        std::pair{"", "http:// or https://"}, std::pair{"localhost:8080", "http:// or https://"},
        std::pair{"ftp://host/v1", "http:// or https://"}, std::pair{"://host", "http:// or https://"},
        std::pair{"http://", "the host"}, std::pair{"http:///v1", "the host"}, std::pair{"http://:80", "the host"},
        std::pair{"http://ho\\st", "the host"}, std::pair{"http://h%41", "the host"},
        std::pair{"http://host:", "the port"}, std::pair{"http://host:0", "the port"},
        std::pair{"http://host:65536", "the port"}, std::pair{"http://host:-1", "the port"},
        std::pair{"http://host:80x/v1", "the port"}, std::pair{"http://::1/v1", "the host"},
        std::pair{"http://[::1", "not closed"}, std::pair{"http://[]", "IPv6"}, std::pair{"http://[1.2.3.4]", "IPv6"},
        std::pair{"http://[fe80::1%eth0]", "zone"}, std::pair{"http://[::1]80", "after the brackets"},
        std::pair{"http://host/v1?", "no query"}, std::pair{"http://host#x", "no query"});
    const std::string message = why_url_is_refused(text);
    CAPTURE(text);
    CHECK_THAT(message, ContainsSubstring(why));
    CHECK_THAT(message, ContainsSubstring("'" + std::string(text).substr(0, std::string(text).find_first_of("?#"))));
}

TEST_CASE("A URL cannot bring anything into the header of a request") {
    const std::string bad =
        GENERATE(as<std::string>(), "\r\n", "\t", "\x7f", "\xc3\xa9", std::string(1, '\0'), "\x1b[31m");
    const std::string before = GENERATE(as<std::string>(), "http://host/v1", "http://ho", "http://host:80", "");
    const std::string message = why_url_is_refused(before + bad + "x");
    CHECK_THAT(message, ContainsSubstring("no spaces, control characters"));
    CHECK(message.find(bad) == std::string::npos);
    CHECK_FALSE(why_url_is_refused(before + " x").empty());
}

TEST_CASE("A URL with a secret in it is refused without showing it") {
    const auto url = GENERATE("http://user:secret@host/v1", "https://secret@host", "http://user:se/cret@host",
                              "http:/secret@host", "http://host/v1?key=secret", "http://host/v1#secret");
    const std::string message = why_url_is_refused(url);
    CHECK_FALSE(message.empty());
    CHECK_THAT(message, !ContainsSubstring("secret") && !ContainsSubstring("user:") && ContainsSubstring("host"));
    CHECK_THAT(why_url_is_refused("http://secret@host"), ContainsSubstring("does not belong in the URL"));
}

TEST_CASE("The error of a long URL is short") {
    CHECK(why_url_is_refused("http://" + std::string(100'000, 'x')).size() < 400);
    CHECK(why_url_is_refused("http://" + std::string(253, 'x')).empty());
    CHECK_FALSE(why_url_is_refused("http://" + std::string(254, 'x')).empty());
}

TEST_CASE("An authority has brackets around an IPv6 address") {
    CHECK(openai::authority(openai::parse_url("http://host")) == "host:80");
    CHECK(openai::authority(openai::parse_url("https://[::1]:8443/v1")) == "[::1]:8443");
}

TEST_CASE("A proxy of the environment is refused by naming its variable, not its value") {
    const auto [url, variable] =
        GENERATE(std::pair{"http://host/v1", "http_proxy"}, std::pair{"http://host/v1", "HTTP_PROXY"},
                 std::pair{"http://host/v1", "all_proxy"}, std::pair{"http://host/v1", "ALL_PROXY"},
                 std::pair{"https://host/v1", "https_proxy"}, std::pair{"https://host/v1", "HTTPS_PROXY"},
                 std::pair{"https://host/v1", "all_proxy"}, std::pair{"https://host/v1", "ALL_PROXY"});
    const std::string message = why_proxy_is_refused(url, {{variable, "http://user:secret@proxy:3128"}});
    CHECK_THAT(message, ContainsSubstring(variable) && ContainsSubstring("host:") && ContainsSubstring("no_proxy"));
    CHECK_THAT(message, !ContainsSubstring("secret") && !ContainsSubstring("3128"));
}

TEST_CASE("A proxy that is not for the URL is no matter") {
    CHECK(why_proxy_is_refused("http://host", {}).empty());
    CHECK(why_proxy_is_refused("http://host", {{"https_proxy", "x"}, {"HTTPS_PROXY", "x"}}).empty());
    CHECK(why_proxy_is_refused("https://host", {{"http_proxy", "x"}, {"HTTP_PROXY", "x"}}).empty());
    CHECK(why_proxy_is_refused("http://host", {{"http_proxy", ""}, {"all_proxy", ""}}).empty());
}

TEST_CASE("no_proxy exempts hosts, subdomains, ports, addresses and networks") {
    CHECK(is_exempt("http://host", "*"));
    CHECK(is_exempt("http://host", "host"));
    CHECK(is_exempt("http://host", "other, HOST"));
    CHECK(is_exempt("http://a.example.com", "example.com"));
    CHECK(is_exempt("http://a.example.com", ".example.com"));
    CHECK(is_exempt("http://a.example.com", "*.example.com"));
    CHECK(is_exempt("http://host:8080", "host:8080"));
    CHECK(is_exempt("http://192.0.2.1:8080", "localhost,192.0.2.1"));
    CHECK(is_exempt("http://[2001:db8::1]:1", "2001:db8::1"));
    CHECK(is_exempt("http://[2001:db8::1]:8080", "[2001:db8::1]:8080"));
    CHECK(is_exempt("http://10.1.2.3", "10.0.0.0/8"));
    CHECK(is_exempt("http://[2001:db8::1]", "2001:db8::/32"));
    CHECK(why_proxy_is_refused("http://host", {{"http_proxy", "x"}, {"NO_PROXY", "host"}}).empty());
}

TEST_CASE("No proxy is for this computer") {
    for (const char* url : {"http://localhost", "https://127.0.0.1:8080", "http://127.8.8.8", "http://[::1]:1"}) {
        CHECK(is_exempt(url, ""));
    }
    CHECK_FALSE(is_exempt("http://localhost.example.com", ""));
    CHECK_FALSE(is_exempt("http://128.0.0.1", ""));
}

TEST_CASE("A client does not go around a proxy") {
    const std::map<std::string, std::string> variables{{"http_proxy", "http://proxy:3128"}};
    const ProxyEnvironment environment(variables);
    asio::io_context context;
    CHECK_THROWS_WITH(openai::Client(context.get_executor(), "http://example.com/v1"),
                      ContainsSubstring("http_proxy names a proxy for example.com:80"));
    CHECK_NOTHROW(openai::Client(context.get_executor(), "http://localhost/v1"));
}

TEST_CASE("no_proxy exempts nothing else") {
    CHECK_FALSE(is_exempt("http://host", ""));
    CHECK_FALSE(is_exempt("http://host", " , ,"));
    CHECK_FALSE(is_exempt("http://host", "."));
    CHECK_FALSE(is_exempt("http://host", "hos,ost,host.example.com"));
    CHECK_FALSE(is_exempt("http://badexample.com", "example.com"));
    CHECK_FALSE(is_exempt("http://host:8080", "host:80"));
    CHECK_FALSE(is_exempt("http://11.1.2.3", "10.0.0.0/8"));
    CHECK_FALSE(is_exempt("http://[2001:db9::1]", "2001:db8::/32"));
    CHECK_FALSE(is_exempt("http://host", "10.0.0.0/8"));
}
