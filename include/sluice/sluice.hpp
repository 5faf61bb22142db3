// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/barrier.hpp>
#include <sluice/broken_barrier.hpp>
#include <sluice/concepts.hpp>
#include <sluice/dead_letter.hpp>
#include <sluice/inference_pipeline.hpp>
#include <sluice/observer.hpp>
#include <sluice/pipeline_options.hpp>
#include <sluice/query.hpp>
#include <sluice/result_stream.hpp>
#include <sluice/retry.hpp>
#include <sluice/run_on.hpp>
#include <sluice/shared_string.hpp>
#include <sluice/stage.hpp>
#include <sluice/stage_error.hpp>
#include <sluice/stage_options.hpp>
#include <sluice/stage_semaphore.hpp>
#include <sluice/task_group.hpp>
#include <sluice/timeout.hpp>
#include <sluice/timer.hpp>
