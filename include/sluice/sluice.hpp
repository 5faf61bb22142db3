// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/pipeline/dead_letter.hpp>
#include <sluice/pipeline/inference_pipeline.hpp>
#include <sluice/pipeline/inference_pipeline_options.hpp>
#include <sluice/pipeline/result_stream.hpp>
#include <sluice/query.hpp>
#include <sluice/result.hpp>
#include <sluice/shared_string.hpp>
#include <sluice/stage/model_function.hpp>
#include <sluice/stage/retry.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/stage_error.hpp>
#include <sluice/sync/awaitable_function.hpp>
#include <sluice/sync/barrier.hpp>
#include <sluice/sync/run_on.hpp>
#include <sluice/sync/slot.hpp>
#include <sluice/sync/stage_semaphore.hpp>
#include <sluice/sync/task_group.hpp>
#include <sluice/sync/timeout.hpp>
#include <sluice/sync/timer.hpp>
#include <sluice/version.hpp>
