// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/pipeline/checkpoint.hpp>

#include <cstddef>
#include <stdexcept>
#include <vector>

namespace sluice {

/// Thrown by the operations of a pipeline that is being drained, or has been: it takes in nothing more. A query, range
/// or source that was moved into process_one() or process_batch() is destroyed; pass by reference what must not be
/// lost.
class Draining : public std::runtime_error {
public:
    Draining() : std::runtime_error("the pipeline is draining and takes in no query") {}
};

/// The outcome of a drain of a pipeline or a stream. The four numbers together are the queries that were in work
/// when it began, and those that a source handed over after that.
template <class Record>
struct DrainReport {
    std::size_t completed = 0;
    std::size_t dead = 0;        ///< Went to the dead-letter sink.
    std::size_t cancelled = 0;   ///< Together with the call or stream that they belonged to, before the grace was over.
    std::size_t unfinished = 0;  ///< Cut short by the drain.

    /// Those of the unfinished queries whose results no caller receives, since they belonged to a stream, or to a batch
    /// that threw. (Other batches and process_one() return theirs.) Then what such a stream or batch had not taken of a
    /// container that it owns; see Pipeline::drain(). That was not in work, and is not in the numbers; nor are queries
    /// of a stream that was drained before, alone or with the pipeline that owned it. Each is in one report.
    std::vector<Checkpoint<Record>> checkpoints;

    DrainReport() = default;
};

}  // namespace sluice
