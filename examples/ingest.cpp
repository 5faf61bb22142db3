// SPDX-License-Identifier: BSL-1.0
// Takes in lines from standard input: each is split into chunks, embedded and classified side by side, and stored.
// Ctrl-C drains. What was not done is written with what is known of it, and can be resumed.
#include "arguments.hpp"
#include "line_source.hpp"

#include <sluice/sluice.hpp>

#include <boost/asio.hpp>
#include <boost/describe/class.hpp>
#include <boost/json/src.hpp>

#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <csignal>
#include <cstddef>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <optional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>
#include <vector>

namespace asio = boost::asio;
namespace json = boost::json;
using namespace std::chrono_literals;

namespace {

constexpr std::string_view usage = R"(usage: ingest [options] <LINES

  --unfinished FILE  write what was not done to FILE, as JSON lines (default: standard error)
  --resume FILE      go on with such a file instead of standard input
  --grace SECONDS    the time that lines in work have after the first Ctrl-C; a second one ends it (default 5)
  -h, --help         print this text

The models are simulated: a line without letters fails, and one with the word "slow" takes an hour.
Progress is shown on standard error, if that is a terminal.
The status is 0 if every line was stored, 1 if not, and 2 after an error.
)";

struct Options {
    std::string unfinished;
    std::string resume;
    std::chrono::seconds grace = 5s;
    bool help = false;
};

Options parse(int argc, char** argv) {
    Options options;
    for (support::Arguments arguments(argc, argv); arguments.next();) {
        const std::string& option = arguments.option();
        if (option == "--unfinished") {
            options.unfinished = arguments.value("a file name");
        } else if (option == "--resume") {
            options.resume = arguments.value("a file name");
        } else if (option == "--grace") {
            options.grace = std::chrono::seconds(arguments.number(0, 86'400));
        } else if (option == "--help") {
            options.help = true;
        } else {
            arguments.unknown();
        }
    }
    return options;
}

using Vectors = std::vector<std::vector<double>>;

// All that is known of a line.
struct Document {
    std::optional<std::vector<std::string>> chunks;
    std::optional<Vectors> vectors;  // of the chunks
    std::optional<std::string> topic;
};
BOOST_DESCRIBE_STRUCT(Document, (), (chunks, vectors, topic))

// A line that was not done, as it is written to a file and resumed.
struct Unfinished {
    std::string id;
    std::string text;
    std::optional<std::string> error;
    Document record;
};
BOOST_DESCRIBE_STRUCT(Unfinished, (), (id, text, error, record))

using Checkpoints = std::vector<sluice::Checkpoint<Document>>;

Checkpoints read_unfinished(const std::string& name) {
    Checkpoints checkpoints;
    if (name.empty()) return checkpoints;
    std::ifstream file(name);
    for (std::string line; std::getline(file, line);) {
        boost::system::error_code error;
        const auto value = json::parse(line, error, {}, json::parse_options{.allow_invalid_utf8 = true});
        auto parsed = error ? json::result<Unfinished>(error) : json::try_value_to<Unfinished>(value);
        const std::string what = "line " + std::to_string(checkpoints.size() + 1) + " of '" + name + "'";
        if (!parsed) throw std::runtime_error(what + " is not what --unfinished writes: " + parsed.error().message());
        checkpoints.emplace_back(sluice::Query(parsed->id, std::move(parsed->text)), std::move(parsed->record));
    }
    if (!file.eof()) throw std::runtime_error("cannot read '" + name + "'");
    return checkpoints;
}

// Collects what was not done. It is the dead-letter sink, too.
struct NotDone {
    std::vector<Unfinished> lines;

    void put(const sluice::Query& query, const sluice::StageResult<>& why, const Document& record) {
        lines.push_back({query.id, query.text, why.stage.str() + ": " + why.error.message(), record});
    }
};

asio::awaitable<void> sleep(std::chrono::milliseconds duration) {
    asio::steady_timer timer(co_await asio::this_coro::executor, duration);
    co_await timer.async_wait(asio::deferred);
}

// The simulated models. Their calls are what is paid for, so they are counted.
std::size_t embed_calls = 0;
std::size_t classify_calls = 0;

asio::awaitable<Vectors> embed(const std::vector<std::string>& chunks) {
    ++embed_calls;
    co_await sleep(10ms);
    Vectors vectors;
    for (const auto& chunk : chunks) vectors.push_back({static_cast<double>(chunk.size())});
    co_return vectors;
}

asio::awaitable<std::string> classify(const std::string& text) {
    ++classify_calls;
    co_await sleep(text.find("slow") == std::string::npos ? 5ms : 1h);
    const bool has_words = std::ranges::any_of(text, [](unsigned char c) { return std::isalpha(c); });
    if (!has_words) throw std::invalid_argument("there are no words");
    co_return text.ends_with('?') ? "question" : "statement";
}

std::vector<std::string> split(const std::string& text) {
    std::vector<std::string> sentences;
    std::istringstream in(text);
    for (std::string sentence; std::getline(in, sentence, '.');) sentences.push_back(sentence);
    return sentences;
}

auto make_pipeline(const asio::any_io_executor& executor, NotDone& not_done) {
    const sluice::Stage embed_stage(executor, "embed", 4, embed);
    const sluice::Stage classify_stage(executor, "classify", 8, classify);
    // NOLINTNEXTLINE(cppcoreguidelines-avoid-capturing-lambda-coroutines): the pipeline stores it
    auto route = [=](sluice::Run<Document>& run) -> asio::awaitable<void> {
        if (!run->chunks) run->chunks = split(run.query().text);  // costs nothing, so it is no stage
        co_await run.all(run.step(&Document::vectors, embed_stage, &Document::chunks),
                         run.step(&Document::topic, classify_stage, run.query().text));
    };
    return sluice::Pipeline(executor, std::move(route), not_done, 16);
}

std::ofstream open(const std::string& name, std::ios::openmode mode) {
    std::ofstream file(name, mode);
    if (!file) throw std::runtime_error("cannot write '" + name + "'");
    return file;
}

class Ingest {
public:
    Ingest(const asio::any_io_executor& executor, const Options& options)
        : options_(options),
          lines_(options.resume.empty() ? std::make_unique<support::LineSource>(executor) : nullptr),
          resumed_(read_unfinished(options.resume)),
          signals_(executor, SIGINT, SIGTERM),
          pipeline_(make_pipeline(executor, not_done_)) {
        if (!options.unfinished.empty()) open(options.unfinished, std::ios::app);  // a wrong name ends it now
    }

    /// Returns the status to exit with.
    asio::awaitable<int> run() {
        const std::size_t resumed = resumed_.size();
        const auto body = [this](sluice::TaskGroup& group) { return take_in(group); };
        co_await sluice::with_task_group(body);
        if (lines_) {
            for (const auto& query : lines_->rest()) not_done_.lines.push_back({query.id, query.text, {}, {}});
        }
        write_not_done();
        std::cout << "Lines: " << (lines_ ? lines_->count() : resumed) << " read, " << stored_ << " stored, "
                  << not_done_.lines.size() << " not done\n"
                  << "Model calls: " << embed_calls << " embed, " << classify_calls << " classify\n";
        for (const auto& [topic, vectors] : store_) std::cout << topic << ": " << vectors.size() << '\n';
        if (lines_ && lines_->error()) {
            throw std::runtime_error("cannot read standard input: " + lines_->error().message());
        }
        co_return not_done_.lines.empty() ? 0 : 1;
    }

private:
    asio::awaitable<void> take_in(sluice::TaskGroup& group) {
        group.spawn(drain_when_told(group));
        auto results = lines_ ? pipeline_.process_stream(*lines_) : pipeline_.process_stream(std::move(resumed_));
        while (auto item = co_await results.next()) {
            auto& result = item->result;
            std::cerr << erase_;  // standard output may be the same terminal
            if (result.completed) {
                std::cout << result.query.id << "  " << *result.record.topic << std::endl;
                store_[*result.record.topic].push_back(std::move(*result.record.vectors));
                ++stored_;
            }
            if (progress_) std::cerr << stored_ << " stored, " << not_done_.lines.size() << " failed";
        }
        std::cerr << erase_;
        ended_ = true;
        signals_.cancel();
    }

    // The first signal drains, and any other ends the grace.
    asio::awaitable<void> drain_when_told(sluice::TaskGroup& group) {
        constexpr auto token = asio::as_tuple(asio::deferred);
        for (auto grace = options_.grace; !ended_; grace = 0s) {
            const auto [error, number] = co_await signals_.async_wait(token);
            if (error) co_return;
            std::cerr << erase_ << "ingest: draining, for at most " << grace.count() << " s\n";
            group.spawn(drain(grace));
        }
    }

    asio::awaitable<void> drain(std::chrono::seconds grace) {
        const auto report = co_await pipeline_.drain(grace);
        for (const auto& [query, record] : report.checkpoints)
            not_done_.lines.push_back({query.id, query.text, {}, record});
    }

    void write_not_done() {
        namespace fs = std::filesystem;
        const std::string& name = options_.unfinished;
        if (name.empty()) return write_not_done(std::cerr, "standard error");
        // A file is replaced when all is written, so that a full disk costs nothing: it may be the one that was
        // resumed.
        if (const std::string beside = name + ".new"; fs::is_regular_file(fs::symlink_status(name))) {
            if (std::ofstream file(beside); file) {  // unless nothing may be added to its folder
                write_not_done(file, beside);
                std::error_code error;
                fs::permissions(beside, fs::status(name).permissions(), error);
                fs::rename(beside, name, error);
                if (!error) return;
                fs::remove(beside, error);
            }
        }
        auto file = open(name, std::ios::trunc);
        write_not_done(file, name);
    }
    void write_not_done(std::ostream& out, const std::string& name) const {
        for (const auto& line : not_done_.lines) out << json::value_from(line) << '\n';
        if (!out.flush()) throw std::runtime_error("cannot write '" + name + "'");
    }

    const Options& options_;
    const bool progress_ = isatty(STDERR_FILENO);
    const std::string_view erase_ = progress_ ? "\r\033[K" : "";
    std::unique_ptr<support::LineSource> lines_;  // before anything else is opened
    Checkpoints resumed_;
    asio::signal_set signals_;
    NotDone not_done_;
    decltype(make_pipeline({}, std::declval<NotDone&>())) pipeline_;
    std::map<std::string, std::vector<Vectors>> store_;  // by topic
    std::size_t stored_ = 0;
    bool ended_ = false;
};

}  // namespace

int main(int argc, char** argv) {
    try {
        const Options options = parse(argc, argv);
        if (options.help) return std::cout << usage, 0;
        asio::io_context context(1);
        Ingest ingest(context.get_executor(), options);
        auto done = asio::co_spawn(context, ingest.run(), asio::use_future);
        context.run();
        return done.get();
    } catch (const std::exception& error) {
        std::cerr << "ingest: " << error.what() << '\n';
        return 2;
    }
}
