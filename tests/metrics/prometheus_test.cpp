// SPDX-License-Identifier: BSL-1.0
#include <sluice/metrics/metrics.hpp>
#include <sluice/metrics/prometheus.hpp>
#include <sluice/pipeline/inference_pipeline.hpp>

#include "support/models.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <catch2/catch_message.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cctype>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <limits>
#include <map>
#include <optional>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;
using sluice::MetricsSnapshot;
using sluice::prometheus;

namespace {

struct TextSample {
    std::string name;
    std::map<std::string, std::string> labels;
    double value = 0;
};

// Reads the text format of Prometheus strictly, and by its naming rules. `problem` is the first mistake, or empty.
class TextChecker {
public:
    std::string problem;
    std::map<std::string, std::string> types;  // of the families
    std::vector<TextSample> samples;

    explicit TextChecker(const std::string& text) {
        expect(text.empty() || text.back() == '\n', "the text does not end with a newline");
        std::istringstream in(text);
        for (std::string line; std::getline(in, line) && problem.empty();) {
            read(line);
            if (!problem.empty()) {
                problem += ", in: " + line;
            }
        }
        for (const auto& [name, type] : types) {
            expect(helped_.contains(name), "a family without a help text");
            expect(type != "histogram" || !series_of_[name].empty(), "a family without a sample");
            for (const auto& [series, histogram] : series_of_[name]) {
                check_histogram(histogram);
            }
        }
    }

    // The value of the sample; not a number if there is none.
    double at(const std::string& name, const std::map<std::string, std::string>& labels) const {
        const auto found = std::ranges::find_if(
            samples, [&](const TextSample& sample) { return sample.name == name && sample.labels == labels; });
        return found == samples.end() ? std::numeric_limits<double>::quiet_NaN() : found->value;
    }

private:
    struct Series {
        std::vector<std::pair<double, double>> buckets;  // bound and number
        std::optional<double> sum;
        std::optional<double> count;
    };

    void expect(bool holds, const char* what) {
        if (!holds && problem.empty()) {
            problem = what;
        }
    }

    static bool is_name(std::string_view name) {
        return !name.empty() && !std::isdigit(static_cast<unsigned char>(name.front())) &&
               std::ranges::all_of(name,
                                   [](char c) { return c == '_' || (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9'); });
    }

    void read(const std::string& line) {
        if (line.starts_with("# HELP ") || line.starts_with("# TYPE ")) {
            const auto end = line.find(' ', 7);
            expect(end != std::string::npos && end + 1 != line.size(), "an empty help text or type");
            const std::string name = line.substr(7, end - 7);
            const std::string rest = line.substr(end + 1);
            if (line[2] == 'H') {
                expect(helped_.insert(name).second, "a second help text");
            } else {
                expect(types.emplace(name, rest).second, "a second type");
                check_family(name, rest);
                family_ = name;
            }
        } else {
            read_sample(line);
        }
    }

    void check_family(const std::string& name, const std::string& type) {
        expect(is_name(name) && name.starts_with("sluice_"), "a bad name");
        expect(type == "counter" || type == "gauge" || type == "histogram", "an unknown type");
        expect((type == "counter") == name.ends_with("_total"), "_total is the end of counters, and of nothing else");
        const bool is_time = type == "histogram" || name == "sluice_endpoint_pause_left_seconds";
        expect(is_time == name.ends_with("_seconds"), "a time is in seconds, and nothing else is");
        for (const char* reserved : {"_count", "_sum", "_bucket"}) {
            expect(!name.ends_with(reserved), "a reserved ending");
        }
    }

    void read_sample(const std::string& line) {
        TextSample sample;
        std::size_t at = line.find('{');
        expect(at != std::string::npos, "a sample without labels");
        if (at == std::string::npos) {
            return;
        }
        sample.name = line.substr(0, at);
        do {
            const auto equals = line.find("=\"", ++at);
            expect(equals != std::string::npos, "a bad label");
            if (equals == std::string::npos) {
                return;
            }
            const std::string label = line.substr(at, equals - at);
            expect(is_name(label), "a bad name of a label");
            at = equals + 2;
            expect(sample.labels.emplace(label, read_value(line, at)).second, "a label that comes twice");
        } while (at < line.size() && line[at] == ',');
        expect(line.substr(std::min(at, line.size()), 2) == "} ", "the labels do not end");
        const char* const begin = line.data() + std::min(at + 2, line.size());
        char* end = nullptr;
        sample.value = std::strtod(begin, &end);  // libc++ 19 has no std::from_chars for it
        expect(end != begin && end == line.data() + line.size(), "a bad value");
        expect(seen_.emplace(sample.name, sample.labels).second, "a sample that comes twice");
        add(sample);
        samples.push_back(std::move(sample));
    }

    // The value of a label, of which `at` is the first character; then it is the one after the quote.
    std::string read_value(const std::string& line, std::size_t& at) {
        std::string value;
        for (; at < line.size() && line[at] != '"'; ++at) {
            if (line[at] == '\\') {
                ++at;
                expect(at < line.size() && (line[at] == '\\' || line[at] == '"' || line[at] == 'n'), "a bad escape");
                value += at < line.size() && line[at] == 'n' ? '\n' : line[at];
            } else {
                value += line[at];
            }
        }
        ++at;
        return value;
    }

    void add(const TextSample& sample) {
        if (types[family_] != "histogram") {
            expect(sample.name == family_, "a sample outside of its family");
            return;
        }
        auto labels = sample.labels;
        const auto bound = labels.extract("le");
        Series& series = series_of_[family_][labels];
        if (sample.name == family_ + "_bucket") {
            expect(!bound.empty(), "a bucket without a bound");
            series.buckets.emplace_back(bound.empty() || bound.mapped() == "+Inf"
                                            ? std::numeric_limits<double>::infinity()
                                            : std::stod(bound.mapped()),
                                        sample.value);
        } else {
            expect(bound.empty(), "a bound outside of a bucket");
            expect(sample.name == family_ + "_sum" || sample.name == family_ + "_count",
                   "a sample outside of its family");
            (sample.name.ends_with("_sum") ? series.sum : series.count) = sample.value;
        }
    }

    void check_histogram(const Series& series) {
        expect(std::ranges::is_sorted(series.buckets), "buckets that are not cumulative, or out of order");
        expect(series.sum && series.count && !series.buckets.empty() &&
                   series.buckets.back() == std::pair(std::numeric_limits<double>::infinity(), *series.count),
               "the last bucket is not the number of values");
        expect(std::ranges::is_sorted(series.buckets, {}, [](const auto& bucket) { return bucket.second; }),
               "buckets that are not cumulative");
    }

    std::string family_;
    std::set<std::string> helped_;
    std::set<std::pair<std::string, std::map<std::string, std::string>>> seen_;
    std::map<std::string, std::map<std::map<std::string, std::string>, Series>> series_of_;
};

// The lines of a family, without those of zero.
std::string lines_of_family(const std::string& text, const std::string& family) {
    std::istringstream in(text);
    std::string found;
    for (std::string line; std::getline(in, line);) {
        if (line.find(family) != std::string::npos && !line.ends_with(" 0")) {
            found += line + '\n';
        }
    }
    return found;
}

}  // namespace

TEST_CASE("prometheus: nothing is an empty text", "[metrics]") { CHECK(prometheus(MetricsSnapshot()).empty()); }

TEST_CASE("prometheus: the text of a run is valid, and has its numbers", "[metrics]") {
    test::Rig<> rig;
    sluice::Metrics metrics;
    auto options = test::every_stage(sluice::StageOptions{.retry = test::retries(1, 30ms)}, &metrics);
    auto pipeline = rig.pipeline({4, 2, 2}, options);
    metrics.watch(pipeline, "support");
    metrics.watch(pipeline.classify().endpoint());
    metrics.watch(pipeline.extract().endpoint());
    metrics.watch(pipeline.generate().endpoint());
    rig.classify.failures = {{"t1", 1}, {"t3", 2}};
    rig.generate.failures = {{"t0", 2}};
    const auto queries = test::make_queries(6);
    const test::Task<> batch(rig.context.get_executor(), [&]() -> asio::awaitable<void> {
        static_cast<void>(co_await pipeline.process_batch(queries));
    });
    test::run_until(rig.context, 60ms);
    const TextChecker early(prometheus(metrics.snapshot()));
    CHECK(early.problem.empty());
    CHECK(early.at("sluice_pipeline_in_work", {{"pipeline", "support"}}) == 6);
    CHECK(early.at("sluice_endpoint_limit", {{"endpoint", "classify"}}) == 4);
    CHECK(early.at("sluice_endpoint_active", {{"endpoint", "extract"}}) == 2);
    CHECK(early.at("sluice_stage_in_backoff", {{"stage", "classify"}}) == 2);
    rig.run();

    const std::string text = prometheus(metrics.snapshot());
    const TextChecker end(text);
    INFO(text);
    CHECK(end.problem.empty());
    CHECK(end.types.size() == 22);
    CHECK(end.at("sluice_stage_entered_total", {{"stage", "classify"}}) == 6);
    CHECK(end.at("sluice_stage_attempts_total", {{"stage", "classify"}}) == 8);
    CHECK(end.at("sluice_stage_failed_attempts_total", {{"stage", "classify"}}) == 3);
    CHECK(end.at("sluice_stage_retries_total", {{"stage", "classify"}, {"verdict", "transient"}}) == 2);
    CHECK(end.at("sluice_stage_retries_total", {{"stage", "classify"}, {"verdict", "throttled"}}) == 0);
    CHECK(end.at("sluice_stage_finished_total", {{"stage", "classify"}, {"outcome", "succeeded"}}) == 5);
    CHECK(end.at("sluice_stage_finished_total", {{"stage", "classify"}, {"outcome", "failed"}}) == 1);
    CHECK(end.at("sluice_stage_latency_seconds_sum", {{"stage", "classify"}}) == 0.4);
    CHECK(end.at("sluice_stage_latency_seconds_count", {{"stage", "classify"}}) == 8);
    CHECK(end.at("sluice_stage_latency_seconds_bucket", {{"stage", "classify"}, {"le", "0.04"}}) == 0);
    CHECK(end.at("sluice_stage_latency_seconds_bucket", {{"stage", "classify"}, {"le", "0.08"}}) == 8);
    CHECK(end.at("sluice_dead_letters_total", {{"stage", "generate"}, {"reason", "model"}}) == 1);
    CHECK(end.at("sluice_pipeline_queries_total", {{"pipeline", "support"}, {"outcome", "completed"}}) == 4);
    CHECK(end.at("sluice_pipeline_queries_total", {{"pipeline", "support"}, {"outcome", "dead_letter"}}) == 2);
}

TEST_CASE("prometheus: a histogram has OpenTelemetry's boundaries, cumulative, and its sum in seconds", "[metrics]") {
    MetricsSnapshot snapshot;
    sluice::StageMetrics& stage = snapshot.stages.emplace_back();
    stage.stage = "s";
    for (const auto value : {0ms, 10ms, 11ms, 20ms, 81'920ms, 81'921ms}) {
        stage.latency.add(value);
    }
    CHECK(lines_of_family(prometheus(snapshot), "sluice_stage_latency_seconds") ==
          "# HELP sluice_stage_latency_seconds The time of each attempt.\n"
          "# TYPE sluice_stage_latency_seconds histogram\n"
          "sluice_stage_latency_seconds_bucket{stage=\"s\",le=\"0.01\"} 2\n"
          "sluice_stage_latency_seconds_bucket{stage=\"s\",le=\"0.02\"} 4\n"
          "sluice_stage_latency_seconds_bucket{stage=\"s\",le=\"0.04\"} 4\n"
          "sluice_stage_latency_seconds_bucket{stage=\"s\",le=\"0.08\"} 4\n"
          "sluice_stage_latency_seconds_bucket{stage=\"s\",le=\"0.16\"} 4\n"
          "sluice_stage_latency_seconds_bucket{stage=\"s\",le=\"0.32\"} 4\n"
          "sluice_stage_latency_seconds_bucket{stage=\"s\",le=\"0.64\"} 4\n"
          "sluice_stage_latency_seconds_bucket{stage=\"s\",le=\"1.28\"} 4\n"
          "sluice_stage_latency_seconds_bucket{stage=\"s\",le=\"2.56\"} 4\n"
          "sluice_stage_latency_seconds_bucket{stage=\"s\",le=\"5.12\"} 4\n"
          "sluice_stage_latency_seconds_bucket{stage=\"s\",le=\"10.24\"} 4\n"
          "sluice_stage_latency_seconds_bucket{stage=\"s\",le=\"20.48\"} 4\n"
          "sluice_stage_latency_seconds_bucket{stage=\"s\",le=\"40.96\"} 4\n"
          "sluice_stage_latency_seconds_bucket{stage=\"s\",le=\"81.92\"} 5\n"
          "sluice_stage_latency_seconds_bucket{stage=\"s\",le=\"+Inf\"} 6\n"
          "sluice_stage_latency_seconds_sum{stage=\"s\"} 163.882\n"
          "sluice_stage_latency_seconds_count{stage=\"s\"} 6\n");
}

TEST_CASE("prometheus: backslash, quote and newline in a name are escaped, and nothing else", "[metrics]") {
    MetricsSnapshot snapshot;
    const std::string name = "a\\b\"c\nd\tMüller {le=\"1\"} \\n";
    snapshot.endpoints.push_back({.endpoint = name, .limit = 7});
    const std::string text = prometheus(snapshot);
    CHECK(lines_of_family(text, "sluice_endpoint_limit") ==
          "# HELP sluice_endpoint_limit Attempts that may run at once.\n"
          "# TYPE sluice_endpoint_limit gauge\n"
          "sluice_endpoint_limit{endpoint=\"a\\\\b\\\"c\\nd\tMüller {le=\\\"1\\\"} \\\\n\"} 7\n");
    const TextChecker checker(text);
    CHECK(checker.problem.empty());
    CHECK(checker.at("sluice_endpoint_limit", {{"endpoint", name}}) == 7);
}

TEST_CASE("prometheus: each number has its own family and label", "[metrics]") {
    MetricsSnapshot snapshot;
    sluice::StageMetrics& stage = snapshot.stages.emplace_back();
    stage.stage = "s";
    stage.queued = 1;
    stage.running = 2;
    stage.in_backoff = 3;
    stage.entered = 4;
    stage.succeeded = 5;
    stage.failed = 6;
    stage.cancelled = 7;
    stage.attempts = 8;
    stage.failed_attempts = 9;
    stage.retries = {10, 11, 12, 13, 14};
    stage.skipped = 33;
    snapshot.dead_letters.push_back({.stage = "s", .dead_letters = {0, 15, 16, 17, 18, 19, 20}, .lost = 21});
    snapshot.endpoints.push_back({.endpoint = "e", .limit = 22, .active = 23, .waiting = 24});
    snapshot.pipelines.push_back({.pipeline = "p",
                                  .window = 25,
                                  .windows = 26,
                                  .window_in_use = 27,
                                  .in_work = 28,
                                  .completed = 29,
                                  .dead_letters = 30,
                                  .cancelled = 31,
                                  .unfinished = 32});
    const std::string text = prometheus(snapshot);
    CHECK(TextChecker(text).problem.empty());
    std::string lines;
    for (const char* family :
         {"sluice_stage_queued{", "sluice_stage_running{", "sluice_stage_in_backoff{", "sluice_stage_entered_total{",
          "sluice_stage_finished_total{", "sluice_stage_skipped_total{", "sluice_stage_attempts_total{",
          "sluice_stage_failed_attempts_total{", "sluice_stage_retries_total{", "sluice_dead_letters_total{",
          "sluice_dead_letters_lost_total{", "sluice_endpoint_", "sluice_pipeline_"}) {
        lines += lines_of_family(text, family);
    }
    std::istringstream in(lines);
    std::vector<std::string> samples;
    for (std::string line; std::getline(in, line);) {
        if (!line.starts_with('#')) {
            samples.push_back(line);
        }
    }
    CHECK(samples == std::vector<std::string>{
                         "sluice_stage_queued{stage=\"s\"} 1",
                         "sluice_stage_running{stage=\"s\"} 2",
                         "sluice_stage_in_backoff{stage=\"s\"} 3",
                         "sluice_stage_entered_total{stage=\"s\"} 4",
                         "sluice_stage_finished_total{stage=\"s\",outcome=\"succeeded\"} 5",
                         "sluice_stage_finished_total{stage=\"s\",outcome=\"failed\"} 6",
                         "sluice_stage_finished_total{stage=\"s\",outcome=\"cancelled\"} 7",
                         "sluice_stage_skipped_total{stage=\"s\"} 33",
                         "sluice_stage_attempts_total{stage=\"s\"} 8",
                         "sluice_stage_failed_attempts_total{stage=\"s\"} 9",
                         "sluice_stage_retries_total{stage=\"s\",verdict=\"transient\"} 10",
                         "sluice_stage_retries_total{stage=\"s\",verdict=\"throttled\"} 11",
                         "sluice_stage_retries_total{stage=\"s\",verdict=\"overloaded\"} 12",
                         "sluice_stage_retries_total{stage=\"s\",verdict=\"invalid\"} 13",
                         "sluice_stage_retries_total{stage=\"s\",verdict=\"exhausted\"} 14",
                         "sluice_dead_letters_total{stage=\"s\",reason=\"model\"} 15",
                         "sluice_dead_letters_total{stage=\"s\",reason=\"timeout\"} 16",
                         "sluice_dead_letters_total{stage=\"s\",reason=\"closed\"} 17",
                         "sluice_dead_letters_total{stage=\"s\",reason=\"missing\"} 18",
                         "sluice_dead_letters_total{stage=\"s\",reason=\"route\"} 19",
                         "sluice_dead_letters_total{stage=\"s\",reason=\"checkpoint\"} 20",
                         "sluice_dead_letters_lost_total{stage=\"s\"} 21",
                         "sluice_endpoint_limit{endpoint=\"e\"} 22",
                         "sluice_endpoint_active{endpoint=\"e\"} 23",
                         "sluice_endpoint_waiting{endpoint=\"e\"} 24",
                         "sluice_pipeline_window{pipeline=\"p\"} 25",
                         "sluice_pipeline_windows{pipeline=\"p\"} 26",
                         "sluice_pipeline_window_in_use{pipeline=\"p\"} 27",
                         "sluice_pipeline_in_work{pipeline=\"p\"} 28",
                         "sluice_pipeline_queries_total{pipeline=\"p\",outcome=\"completed\"} 29",
                         "sluice_pipeline_queries_total{pipeline=\"p\",outcome=\"dead_letter\"} 30",
                         "sluice_pipeline_queries_total{pipeline=\"p\",outcome=\"cancelled\"} 31",
                         "sluice_pipeline_queries_total{pipeline=\"p\",outcome=\"unfinished\"} 32",
                     });
}

TEST_CASE("prometheus: each number of an endpoint's policies has its own family and label", "[metrics]") {
    MetricsSnapshot snapshot;
    sluice::EndpointMetrics& endpoint = snapshot.endpoints.emplace_back();
    endpoint.endpoint = "e";
    endpoint.pause_left = 1500ms;
    endpoint.breaker = {.closed = 1, .open = 2, .half_open = 3, .forced_open = 4, .forced_closed = 5, .openings = 6};
    endpoint.rates[0] = {.periods = {{1ms, 10, 11}, {1min, -12, 13}},
                         .granted = 14,
                         .debt = 98,
                         .settled = 15,
                         .refunded = 99,
                         .outstanding = 16};
    endpoint.rates[1] = {.periods = {{24h, 20, 21}}, .granted = 22, .settled = 23, .outstanding = 24};
    endpoint.rates[2] = {.periods = {}, .granted = 25, .settled = 25};  // it had a rate
    snapshot.endpoints.push_back({.endpoint = "plain"});
    const std::string text = prometheus(snapshot);
    INFO(text);
    CHECK(TextChecker(text).problem.empty());
    std::istringstream in(text);
    std::vector<std::string> samples;
    for (std::string line; std::getline(in, line);) {
        if (!line.starts_with('#') && !line.ends_with(" 0")) {
            samples.push_back(line);
        }
    }
    CHECK(samples == std::vector<std::string>{
                         "sluice_endpoint_pause_left_seconds{endpoint=\"e\"} 1.5",
                         "sluice_endpoint_breaker_state{endpoint=\"e\",state=\"closed\"} 1",
                         "sluice_endpoint_breaker_state{endpoint=\"e\",state=\"open\"} 2",
                         "sluice_endpoint_breaker_state{endpoint=\"e\",state=\"half_open\"} 3",
                         "sluice_endpoint_breaker_state{endpoint=\"e\",state=\"forced_open\"} 4",
                         "sluice_endpoint_breaker_state{endpoint=\"e\",state=\"forced_closed\"} 5",
                         "sluice_endpoint_breaker_openings_total{endpoint=\"e\"} 6",
                         "sluice_endpoint_requests_left{endpoint=\"e\",period_seconds=\"0.001\"} 10",
                         "sluice_endpoint_requests_left{endpoint=\"e\",period_seconds=\"60\"} -12",
                         "sluice_endpoint_requests_burst{endpoint=\"e\",period_seconds=\"0.001\"} 11",
                         "sluice_endpoint_requests_burst{endpoint=\"e\",period_seconds=\"60\"} 13",
                         "sluice_endpoint_requests_granted_total{endpoint=\"e\"} 14",
                         "sluice_endpoint_requests_settled_total{endpoint=\"e\"} 15",
                         "sluice_endpoint_requests_outstanding{endpoint=\"e\"} 16",
                         "sluice_endpoint_input_tokens_left{endpoint=\"e\",period_seconds=\"86400\"} 20",
                         "sluice_endpoint_input_tokens_burst{endpoint=\"e\",period_seconds=\"86400\"} 21",
                         "sluice_endpoint_input_tokens_granted_total{endpoint=\"e\"} 22",
                         "sluice_endpoint_input_tokens_settled_total{endpoint=\"e\"} 23",
                         "sluice_endpoint_input_tokens_outstanding{endpoint=\"e\"} 24",
                         "sluice_endpoint_output_tokens_granted_total{endpoint=\"e\"} 25",
                         "sluice_endpoint_output_tokens_settled_total{endpoint=\"e\"} 25",
                     });
    // An endpoint without a policy has no samples of it.
    CHECK(text.find("sluice_endpoint_breaker_state{endpoint=\"plain\"") == std::string::npos);
    CHECK(text.find("sluice_endpoint_requests_granted_total{endpoint=\"plain\"") == std::string::npos);
    CHECK(text.find("sluice_endpoint_pause_left_seconds{endpoint=\"plain\"} 0\n") != std::string::npos);
}

TEST_CASE("prometheus: the checker of these tests objects to what is wrong", "[metrics]") {
    const std::string head = "# HELP sluice_a_total x\n# TYPE sluice_a_total counter\n";
    CHECK(TextChecker(head + "sluice_a_total{b=\"c\"} 1\n").problem.empty());
    for (const char* line :
         {"sluice_a_total{b=\"c\"} 1", "sluice_b_total{b=\"c\"} 1\n", "sluice_a_total{b=\"c} 1\n",
          "sluice_a_total{b=\"\\c\"} 1\n", "sluice_a_total{b=\"c\",b=\"c\"} 1\n", "sluice_a_total{b=\"c\"} x\n",
          "sluice_a_total{b=\"c\"} 1\nsluice_a_total{b=\"c\"} 1\n", "sluice_a_total 1\n",
          "# TYPE sluice_a_total gauge\n", "# HELP sluice_b x\n# TYPE sluice_b counter\n", "# TYPE sluice_b gauge\n"}) {
        INFO(line);
        CHECK_FALSE(TextChecker(head + line).problem.empty());
    }
    const std::string histogram = "# HELP sluice_a_seconds x\n# TYPE sluice_a_seconds histogram\n";
    const auto samples = [&](int inf, int count) {
        return histogram +
               "sluice_a_seconds_bucket{b=\"c\",le=\"1\"} 2\nsluice_a_seconds_bucket{b=\"c\",le=\"+Inf\"} " +
               std::to_string(inf) + "\nsluice_a_seconds_sum{b=\"c\"} 1\nsluice_a_seconds_count{b=\"c\"} " +
               std::to_string(count) + '\n';
    };
    CHECK(TextChecker(samples(3, 3)).problem.empty());
    CHECK_FALSE(TextChecker(samples(3, 4)).problem.empty());
    CHECK_FALSE(TextChecker(samples(1, 1)).problem.empty());
}
