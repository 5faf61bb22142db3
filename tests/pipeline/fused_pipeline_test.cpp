// SPDX-License-Identifier: BSL-1.0
// Pipelines in which each call of a model, a sink, a save and a source fails in turn, in a batch whose steps run side
// by side, are repeated, are cut short by a drain, and are redriven: each query completes in the end, and no value is
// paid for twice.
#include <sluice/pipeline/checkpoint.hpp>
#include <sluice/pipeline/drain.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/query.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/testing/fuse.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/scripted_model.hpp>

#include "support/models.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <chrono>
#include <cstddef>
#include <map>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;

namespace {

using namespace std::chrono_literals;
using sluice::Query;
using sluice::StageOptions;
using sluice::testing::Fuse;
using sluice::testing::fuse_each;
using test::Task;
using test::timed;
using test::VirtualTimer;

struct Case {
    std::optional<std::string> topic;
    std::optional<std::string> names;
    std::optional<std::string> reply;
};

using CaseRun = sluice::Run<Case>;
using CaseResult = sluice::RecordResult<Case>;
using CaseCheckpoint = sluice::Checkpoint<Case>;
using CaseModel = sluice::testing::ScriptedModel<std::string(const std::string&)>;
using CaseStage = sluice::Stage<CaseModel, VirtualTimer>;

// Keeps dead letters for a redrive. What put() throws for is redriven from the result.
struct Letters {
    Fuse fuse;
    std::vector<CaseCheckpoint> letters;

    void put(const Query& query, const sluice::StageResult<>&, const Case& record) {
        fuse.point();
        letters.emplace_back(query, record);
    }
    void save(const Query&, const Case&) { fuse.point(); }
};

// Each call of a model is a point, and each answer is counted by its stage and text.
class Clinic {
public:
    explicit Clinic(const Fuse& fuse) : fuse_(fuse) {}

    CaseModel model(const std::string& name, std::chrono::nanoseconds latency) {
        return CaseModel([this, name, latency](std::size_t, const std::string& text) {
            fuse_.point();
            ++answers_[name + " of " + text];
            return CaseModel::Call{.answer = name + " of " + text, .latency = latency};
        });
    }

    const std::map<std::string, int>& answers() const noexcept { return answers_; }

private:
    Fuse fuse_;
    std::map<std::string, int> answers_;
};

struct CaseRoute {
    CaseStage topic, names, reply;

    asio::awaitable<void> operator()(CaseRun& run) const {
        const std::string& text = run.query().text;
        co_await run.all(run.step(&Case::topic, topic, text), run.step(&Case::names, names, text));
        co_await run.step(&Case::reply, reply, text);
    }
};

void run_clinic(const Fuse& fuse, int retries, std::optional<std::chrono::nanoseconds> drain_at) {
    INFO("point " << fuse.number());
    Clinic clinic(fuse);
    Letters sink{fuse, {}};
    asio::io_context context(1);
    const auto executor = timed(context.get_executor());
    const StageOptions options{.retry = test::retries(retries, 7ms)};
    const CaseRoute route{CaseStage(executor, "topic", 2, clinic.model("topic", 10ms), options),
                          CaseStage(executor, "names", 2, clinic.model("names", 4ms), options),
                          CaseStage(executor, "reply", 1, clinic.model("reply", 5ms), options)};
    std::map<std::string, Case> complete;
    std::vector<CaseCheckpoint> again;
    const auto sort = [&](std::vector<CaseResult>& results) {
        for (auto& result : results) {
            if (result.completed) {
                CHECK(complete.emplace(result.query.id.str(), result.record).second);
            } else if (result.unfinished || result.dead_letter_error) {
                again.emplace_back(std::move(result.query), std::move(result.record));
            }
        }
        for (auto& letter : std::exchange(sink.letters, {})) {
            again.push_back(std::move(letter));
        }
    };
    sluice::Pipeline first(executor, route, sink, 2);
    Task<std::vector<CaseResult>> batch(context.get_executor(),
                                        [&] { return first.process_batch(test::make_queries(4)); });
    std::optional<Task<sluice::DrainReport<Case>>> report;
    if (drain_at) {
        test::run_until(context, *drain_at);
        report.emplace(context.get_executor(), [&] { return first.drain(0ns); });
    }
    sluice::testing::run(context);
    REQUIRE(batch.succeeded());
    CHECK(batch.value().size() == 4);
    sort(batch.value());
    CHECK(complete.size() + again.size() == 4);
    for (int redrives = 0; !again.empty(); ++redrives) {
        REQUIRE(redrives < 3);  // one error is injected, and its query may fail a second time only by a drain
        sluice::Pipeline pipeline(executor, route, sink, 2);
        Task<std::vector<CaseResult>> redrive(context.get_executor(),
                                              [&] { return pipeline.process_batch(std::exchange(again, {})); });
        sluice::testing::run(context);
        REQUIRE(redrive.succeeded());
        sort(redrive.value());
    }
    CHECK(complete.size() == 4);
    for (const auto& [id, record] : complete) {
        CHECK((record.topic && record.names && record.reply));
    }
    if (!drain_at) {
        for (const auto& [answer, count] : clinic.answers()) {
            INFO(answer);
            CHECK(count == 1);
        }
    }
}

}  // namespace

TEST_CASE(
    "fuse: in a batch whose steps run side by side, whatever fails, a redrive completes it and pays for nothing twice",
    "[fuse][any_shape]") {
    const int retries = GENERATE(0, 1);
    const int points = fuse_each([&](const Fuse& fuse) { run_clinic(fuse, retries, std::nullopt); });
    CHECK(points >= 4 * 3 * 2);  // the models and the saves
}

TEST_CASE("fuse: in a batch that is drained, whatever fails, what is left completes afterwards", "[fuse][drain]") {
    const int retries = GENERATE(0, 1);
    const auto drain_at = GENERATE(2ms, 6ms, 12ms, 17ms, 31ms);
    CHECK(fuse_each([&](const Fuse& fuse) { run_clinic(fuse, retries, drain_at); }) > 0);
}
