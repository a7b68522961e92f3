// What `bim config check` prints. Pure.
#pragma once

#include <string>

#include "daemon/load_config.h"
#include "pkg/base/status.h"

namespace bim::daemon {

// The effective configuration as a file that could be used as it is, each line
// with a comment that says where the value came from; then the warnings, as
// comments. Empty for a failure, which goes to standard error.
std::string ConfigReport(const base::Result<EffectiveConfig>& loaded);

// {"ok":true,"file":"...","settings":[{"key","value","origin"}],"warnings":[]}
// or {"ok":false,"errors":["..."]}. Durations are texts, sizes numbers.
std::string ConfigReportJson(const base::Result<EffectiveConfig>& loaded);

}  // namespace bim::daemon
