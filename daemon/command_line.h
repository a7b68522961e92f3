// The command line of `bim`: words to one parsed Command, and the tree of
// commands as data, from which the completions are made. The only place that
// knows CLI11.
//
// Nothing here reads files, talks to a daemon or prints. Thread-safety: none
// needed, called once from main.
#pragma once

#include <chrono>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "daemon/data_source.h"
#include "daemon/exit_code.h"
#include "daemon/load_config.h"

namespace bim::daemon {

enum class OutputFormat { kTable, kJson };

// The name that Longhorn's control plane calls the program by.
inline constexpr char kLonghornProgram[] = "backing-image-manager";
inline constexpr char kProgram[] = "bim";
// One of the two, by the last part of argv[0].
std::string_view ProgramName(std::string_view argv0);

// What every client command takes.
struct ClientOptions {
  std::string address;  // empty: the default, see DefaultAddress
  OutputFormat output = OutputFormat::kTable;
  std::optional<std::chrono::milliseconds> timeout;  // of the whole command
  // Where the commands of Longhorn's command line find a manager.
  std::string url = "localhost:8000";
};

struct DaemonCommand {
  std::string config_path;
  bool detach = false;
  std::vector<FlagValue> flags;
};
struct ConfigCheckCommand {
  std::string config_path;
  std::vector<FlagValue> flags;
};
// What ensure and upload have in common.
struct WantedImage {
  std::string name, uuid, sha512, sha256;
  std::vector<std::string> disks;
  bool all = false;  // also meant when there are no disks
  bool wait = false;
};
struct ImageEnsureCommand : WantedImage {
  std::string url, credential;
  std::vector<std::string> peers;
  bool upload = false;
  uint64_t size_bytes = 0;  // 0: not stated
};
struct ImageUploadCommand : WantedImage {
  std::string file;
};
struct ImageGetCommand {
  std::string name, uuid;
};
struct ImageListCommand {};
struct ImageWatchCommand {
  std::string name;  // empty: all
};
struct ImageRemoveCommand {
  std::string name, uuid;
  bool force = false;
};
struct ImageVerifyCommand {
  std::string name, uuid;
  std::vector<std::string> disks;
  bool repair = false;
};
struct ImageExportCommand {
  std::string name, uuid, disk;
  std::string file;  // "-": standard output
  bool force = false;
  bool zstd = false;
};
struct DiskListCommand {};
struct DiskAddCommand {
  std::string path, uuid;
  bool init = false;
};
struct DiskRemoveCommand {
  std::string disk;
  bool force = false;
};
struct DiskAdoptCommand {
  std::string disk;
  bool dry_run = false;
};
struct DrainCommand {
  std::chrono::milliseconds at_most{0};
  bool cancel = false;
  bool dry_run = false;
};
struct LimitsGetCommand {};
// What is not set stays as it is. Bytes a second, 0: no limit.
struct LimitsSetCommand {
  std::optional<uint64_t> download_rate, peer_rate, background_read_rate;
  std::optional<uint32_t> transfers, transfers_per_disk;
};
// `handover CMD`: one call of HandoverService.
struct HandoverCommand {
  enum class Call { kBegin, kConfirm, kRollback, kStatus, kHistory };
  Call call = Call::kStatus;
  bool automatic = false;  // of begin
  bool force = false;      // of confirm
  bool dry_run = false;    // of begin, confirm, rollback
  bool watch = false;      // of status
  uint32_t limit = 0;      // of history: the newest; 0: all
};
struct VersionCommand {
  bool client_only = false;
  bool longhorn = false;  // in the form of Longhorn's command line
};
// `backing-image CMD`: one call of Longhorn's API. What a call does not take is
// empty.
struct LonghornCommand {
  enum class Call {
    kSync,
    kFetch,
    kGet,
    kDelete,
    kPrepareDownload,
    kSend,
    kList
  };
  Call call = Call::kList;
  std::string name, uuid;
  int64_t size = 0;  // bytes, 0: not stated
  std::string checksum;
  std::string address;  // of the other manager or data source
};
// Which disks a command works on that reads them itself, without a daemon:
// these, else those that the daemon of this configuration would use.
struct DiskChoice {
  std::vector<std::string> paths;
  std::string config_path;
};
struct ManagerListCommand : DiskChoice {};
struct ManagerCleanupCommand : DiskChoice {
  bool force = false;
  bool dry_run = false;
};
struct HistoryCommand : DiskChoice {
  std::string image;   // name; empty: all
  uint32_t limit = 0;  // entries, the newest; 0: all
};
struct PruneCommand : DiskChoice {
  std::chrono::milliseconds older_than{0};
  bool dry_run = false;
};
struct UpgradeCheckCommand : DiskChoice {};
struct DiskMigrateCommand : DiskChoice {
  bool dry_run = false;
};
struct CompletionCommand {
  std::string shell;
};

using Command = std::variant<
    DaemonCommand, ConfigCheckCommand, ImageEnsureCommand, ImageUploadCommand,
    ImageGetCommand, ImageListCommand, ImageWatchCommand, ImageRemoveCommand,
    ImageVerifyCommand, ImageExportCommand, DiskListCommand, DiskAddCommand,
    DiskRemoveCommand, LimitsGetCommand, LimitsSetCommand, HandoverCommand,
    VersionCommand, CompletionCommand, DataSourceCommand, LonghornCommand,
    ManagerListCommand, ManagerCleanupCommand, HistoryCommand, PruneCommand,
    UpgradeCheckCommand, DiskMigrateCommand, DiskAdoptCommand, DrainCommand>;

struct Invocation {
  ClientOptions client;
  Command command;
};

// Nothing to run: help to print on standard output (kOk), or what is wrong
// with the arguments, one line for standard error (kUsage).
struct ParseEnd {
  ExitCode exit_code = ExitCode::kOk;
  std::string text;
};

// `arguments` without the program's name, which is `program` (a ProgramName).
std::variant<Invocation, ParseEnd> ParseCommandLine(
    const std::vector<std::string>& arguments, const Environment& environment,
    std::string_view program = kProgram);

// A command with its options and subcommands.
struct OptionNode {
  std::vector<std::string> names;  // "-o", "--output"
  std::string help;
  bool takes_value = false;
  std::vector<std::string> choices;  // of the value; empty: any
  bool is_path = false;              // the value is a file or directory
};
struct CommandNode {
  std::string name;
  std::string help;
  std::vector<OptionNode> options;
  std::vector<CommandNode> commands;
  // Choices of the positional argument, as of `completion`.
  std::vector<std::string> argument_choices;
  bool argument_is_path = false;
};
// The root is `bim` itself; its options hold for the commands below it too.
CommandNode DescribeCommands();

}  // namespace bim::daemon
