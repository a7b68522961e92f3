// Shell completions made from the tree of commands, so that they know every
// command and option there is. Pure.
#pragma once

#include <string>
#include <string_view>

#include "daemon/command_line.h"
#include "pkg/base/status.h"

namespace bim::daemon {

// `shell`: "bash", "zsh" or "fish"; another one is INVALID_ARGUMENT.
base::Result<std::string> CompletionScript(const CommandNode& root,
                                           std::string_view shell);

}  // namespace bim::daemon
