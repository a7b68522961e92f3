// Logging to standard error, as text or as one JSON object a line.
//
// BIM_LOG_INFO("added disk {}", path): fmt-style, filtered by level. Never log
// header values, credentials or URL queries (http::RedactUrl).
// Thread-safety: everything, after InitLog.
#pragma once

#include <spdlog/spdlog.h>

#include <string_view>

#include "pkg/base/status.h"

namespace bim::base {

// `level`: "trace", "debug", "info", "warn", "error" or "off"; another one is
// INVALID_ARGUMENT. Called once, before other threads start; without it
// warnings and errors go out as text.
Status InitLog(std::string_view level, bool json);

}  // namespace bim::base

#define BIM_LOG_DEBUG(...) ::spdlog::debug(__VA_ARGS__)
#define BIM_LOG_INFO(...) ::spdlog::info(__VA_ARGS__)
#define BIM_LOG_WARN(...) ::spdlog::warn(__VA_ARGS__)
#define BIM_LOG_ERROR(...) ::spdlog::error(__VA_ARGS__)
