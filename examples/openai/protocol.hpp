// SPDX-License-Identifier: BSL-1.0
#pragma once

// What goes over the wire to an OpenAI-compatible server and comes back, without any I/O.
#include "chat.hpp"
#include "chat_stream.hpp"
#include "embeddings.hpp"
#include "failure.hpp"
#include "rates.hpp"
