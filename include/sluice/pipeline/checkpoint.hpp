// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/query.hpp>
#include <sluice/result.hpp>

#include <utility>

namespace sluice {

/// A query, and a record of what is known of it already: a pipeline goes on at the first field that is empty. So it
/// redrives a dead letter, or resumes what a drain or a restart has interrupted, and pays for nothing twice.
///
/// @code
/// sluice::Checkpoint<Ticket> letter(query, std::move(record));  // named: g++ 12 destroys some temporaries twice
/// co_await pipeline.process_one(std::move(letter));
/// @endcode
template <class Record>
struct Checkpoint {
    Query query;
    Record record{};

    Checkpoint() = default;
    Checkpoint(Query its_query, Record its_record) : query(std::move(its_query)), record(std::move(its_record)) {}

    /// Of a result, to run its query again.
    explicit Checkpoint(RecordResult<Record> result)
        : query(std::move(result.query)), record(std::move(result.record)) {}
};

}  // namespace sluice
