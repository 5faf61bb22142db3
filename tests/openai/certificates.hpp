// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <boost/asio/buffer.hpp>
#include <boost/asio/ssl/context.hpp>

#include <openssl/asn1.h>
#include <openssl/bio.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>
#include <openssl/x509v3.h>

#include <atomic>
#include <filesystem>
#include <fstream>
#include <memory>
#include <stdexcept>
#include <string>

#include <unistd.h>

namespace test {

/// A certificate with its key, signed by another one or by itself.
class Certificate {
public:
    /// An authority of its own.
    Certificate() : Certificate("sluice test authority", "", nullptr, 1) {}

    /// A certificate of a server.
    /// @param names As OpenSSL writes them, such as "DNS:localhost,IP:127.0.0.1".
    /// @param days From yesterday until then, counted from today.
    Certificate(const Certificate& authority, const std::string& names, long days = 1)
        : Certificate("sluice test server", names, &authority, days) {}

    std::string pem() const {
        return written([this](BIO* out) { return ::PEM_write_bio_X509(out, certificate_.get()); });
    }

    /// A context for a server with this certificate.
    boost::asio::ssl::context server_context() const {
        const std::string key = written([this](BIO* out) {
            return ::PEM_write_bio_PrivateKey(out, key_.get(), nullptr, nullptr, 0, nullptr, nullptr);
        });
        boost::asio::ssl::context context(boost::asio::ssl::context::tls_server);
        context.use_certificate_chain(boost::asio::buffer(pem()));
        context.use_private_key(boost::asio::buffer(key), boost::asio::ssl::context::pem);
        return context;
    }

private:
    static constexpr long day = 24L * 60 * 60;

    template <auto free>
    struct Free {
        template <class T>
        void operator()(T* object) const noexcept {
            free(object);
        }
    };

    Certificate(const std::string& name, const std::string& names, const Certificate* authority, long days)
        : key_(::EVP_EC_gen("P-256")), certificate_(::X509_new()) {
        static std::atomic<long> serial = 0;
        X509* const made = certificate_.get();
        ::X509_set_version(made, 2);
        ::ASN1_INTEGER_set(::X509_get_serialNumber(made), ++serial);
        ::X509_gmtime_adj(::X509_getm_notBefore(made), days < 0 ? (days - 1) * day : -day);
        ::X509_gmtime_adj(::X509_getm_notAfter(made), days * day);
        ::X509_set_pubkey(made, key_.get());
        ::X509_NAME_add_entry_by_txt(::X509_get_subject_name(made), "CN", MBSTRING_ASC,
                                     reinterpret_cast<const unsigned char*>(name.c_str()), -1, -1, 0);
        const Certificate& signer = authority == nullptr ? *this : *authority;
        ::X509_set_issuer_name(made, ::X509_get_subject_name(signer.certificate_.get()));
        if (authority == nullptr) {
            extend(NID_basic_constraints, "critical,CA:TRUE");
        } else if (!names.empty()) {
            extend(NID_subject_alt_name, names);
        }
        if (::X509_sign(made, signer.key_.get(), ::EVP_sha256()) == 0) {
            throw std::runtime_error("the certificate could not be signed");
        }
    }

    void extend(int id, const std::string& value) {
        X509V3_CTX context;
        X509V3_set_ctx_nodb(&context);
        const std::unique_ptr<X509_EXTENSION, Free<::X509_EXTENSION_free>> extension(
            ::X509V3_EXT_conf_nid(nullptr, &context, id, value.c_str()));
        if (!extension || ::X509_add_ext(certificate_.get(), extension.get(), -1) == 0) {
            throw std::runtime_error("the certificate takes no '" + value + "'");
        }
    }

    template <class Write>
    static std::string written(Write write) {
        const std::unique_ptr<BIO, Free<::BIO_free>> out(::BIO_new(::BIO_s_mem()));
        if (write(out.get()) == 0) {
            throw std::runtime_error("the certificate could not be written");
        }
        char* data = nullptr;
        const long size = BIO_get_mem_data(out.get(), &data);
        return std::string(data, static_cast<std::size_t>(size));
    }

    std::unique_ptr<EVP_PKEY, Free<::EVP_PKEY_free>> key_;
    std::unique_ptr<X509, Free<::X509_free>> certificate_;
};

/// A file that is removed when this is destroyed.
class TemporaryFile {
public:
    explicit TemporaryFile(const std::string& content)
        : path_(std::filesystem::temp_directory_path() /
                ("sluice-" + std::to_string(::getpid()) + "-" + std::to_string(++number) + ".pem")) {
        std::ofstream(path_) << content;
    }
    TemporaryFile(const TemporaryFile&) = delete;
    TemporaryFile& operator=(const TemporaryFile&) = delete;
    ~TemporaryFile() { std::filesystem::remove(path_); }

    std::string path() const { return path_.string(); }

private:
    static inline std::atomic<int> number = 0;

    std::filesystem::path path_;
};

}  // namespace test
