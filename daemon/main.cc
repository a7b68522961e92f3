// `bim`: words in, exit code out. Everything else is in the files beside.
#include <stdlib.h>

#include <algorithm>
#include <cstdio>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "daemon/client.h"
#include "daemon/command_line.h"
#include "daemon/completion.h"
#include "daemon/config_check.h"
#include "daemon/connection.h"
#include "daemon/data_source.h"
#include "daemon/detach.h"
#include "daemon/load_config.h"
#include "daemon/local_commands.h"
#include "daemon/serve.h"
#include "daemon/table.h"

namespace bim::daemon {
namespace {

// One line each, so that every line of standard error says who speaks.
void PrintProblem(std::string_view program, std::string_view text) {
  while (!text.empty()) {
    const std::string_view line = text.substr(0, text.find('\n'));
    std::fprintf(stderr, "%.*s: %s\n", static_cast<int>(program.size()),
                 program.data(), OneLine(line).c_str());
    text.remove_prefix(std::min(text.size(), line.size() + 1));
  }
}

ExitCode RunDaemonCommand(std::string_view program,
                          const DaemonCommand& command,
                          const Environment& environment) {
  const auto loaded =
      LoadConfig(command.config_path, environment, command.flags);
  if (!loaded.ok()) {
    PrintProblem(program, loaded.status().message());
    return ExitCode::kUsage;
  }
  std::optional<Detached> detached;
  if (command.detach) {
    auto started = Detached::Start();
    if (!started.ok()) {
      PrintProblem(program, started.status().message());
      return ExitCode::kFailed;
    }
    detached = *std::move(started);
  }
  const base::Status ended = Serve(*loaded, [&] {
    if (detached) detached->Serving();
  });
  if (ended.ok()) return ExitCode::kOk;
  PrintProblem(program, ended.message());
  return ExitCode::kFailed;
}

ExitCode RunConfigCheck(std::string_view program,
                        const ConfigCheckCommand& command, OutputFormat output,
                        const Environment& environment) {
  const auto loaded =
      LoadConfig(command.config_path, environment, command.flags);
  const std::string report = output == OutputFormat::kJson
                                 ? ConfigReportJson(loaded)
                                 : ConfigReport(loaded);
  std::fputs(report.c_str(), stdout);
  if (loaded.ok()) return ExitCode::kOk;
  PrintProblem(program, loaded.status().message());
  return ExitCode::kUsage;
}

ExitCode RunCompletion(std::string_view program,
                       const CompletionCommand& command) {
  const auto script = CompletionScript(DescribeCommands(), command.shell);
  if (!script.ok()) {
    PrintProblem(program, script.status().message());
    return ExitCode::kUsage;
  }
  std::fputs(script->c_str(), stdout);
  return ExitCode::kOk;
}

ExitCode RunDataSourceCommand(std::string_view program,
                              const DataSourceCommand& command,
                              const Environment& environment) {
  const auto plan = PlanDataSource(command);
  if (!plan.ok()) {
    PrintProblem(program, plan.status().message());
    return ExitCodeOf(plan.status().code());
  }
  const auto loaded = LoadConfig("", environment, {});
  if (!loaded.ok()) {
    PrintProblem(program, loaded.status().message());
    return ExitCode::kUsage;
  }
  const base::Status ended = RunDataSource(command, *plan, *loaded);
  if (ended.ok()) return ExitCode::kOk;
  PrintProblem(program, ended.message());
  return ExitCode::kFailed;
}

ExitCode Main(std::string_view program,
              const std::vector<std::string>& arguments) {
  const Environment environment = CurrentEnvironment();
  const auto parsed = ParseCommandLine(arguments, environment, program);
  if (const auto* end = std::get_if<ParseEnd>(&parsed)) {
    if (end->exit_code == ExitCode::kOk) {
      std::fputs(end->text.c_str(), stdout);
    } else {
      PrintProblem(program, end->text);
    }
    return end->exit_code;
  }
  const auto& invocation = std::get<Invocation>(parsed);
  if (const auto* daemon = std::get_if<DaemonCommand>(&invocation.command)) {
    return RunDaemonCommand(program, *daemon, environment);
  }
  if (const auto* check =
          std::get_if<ConfigCheckCommand>(&invocation.command)) {
    return RunConfigCheck(program, *check, invocation.client.output,
                          environment);
  }
  if (const auto* completion =
          std::get_if<CompletionCommand>(&invocation.command)) {
    return RunCompletion(program, *completion);
  }
  if (const auto* source =
          std::get_if<DataSourceCommand>(&invocation.command)) {
    return RunDataSourceCommand(program, *source, environment);
  }
  if (IsLocalCommand(invocation.command)) {
    const CommandEnd end = RunLocalCommand(invocation, environment);
    PrintProblem(program, end.message);
    return end.exit_code;
  }
  // gRPC's own lines would hide ours; who debugs it sets the variable.
  setenv("GRPC_VERBOSITY", "NONE", /*overwrite=*/0);
  const CommandEnd end = RunClientCommand(invocation);
  PrintProblem(program, end.message);
  return end.exit_code;
}

}  // namespace
}  // namespace bim::daemon

int main(int argc, char** argv) {
  const std::string_view program =
      bim::daemon::ProgramName(argc > 0 ? argv[0] : "");
  // An empty argv is legal, and has no name to skip.
  const auto code =
      bim::daemon::Main(program, {argv + std::min(argc, 1), argv + argc});
  // What was printed must have arrived, too: a full disk is a failure.
  if (std::fflush(stdout) != 0 || std::ferror(stdout) != 0) {
    std::fprintf(stderr, "%s: cannot write to standard output\n",
                 program.data());
    return static_cast<int>(bim::daemon::ExitCode::kFailed);
  }
  return static_cast<int>(code);
}
