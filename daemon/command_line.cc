#include "daemon/command_line.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <CLI/App.hpp>
#include <CLI/Config.hpp>
#include <CLI/Formatter.hpp>
#include <algorithm>
#include <charconv>
#include <functional>
#include <map>
#include <memory>
#include <system_error>

#include "daemon/settings.h"
#include "daemon/suggest.h"
#include "daemon/units.h"
#include "pkg/base/digest.h"

namespace bim::daemon {
namespace {

// The value names say what completions may offer: kPath a file, and words
// with "|" between them the choices.
constexpr char kPath[] = "PATH";
constexpr char kShells[] = "bash|zsh|fish";
constexpr char kFormats[] = "table|json";

// A check whose text is what is wrong; empty when nothing is.
using Check = std::function<std::string(const std::string&)>;

CLI::Validator Checked(Check check) {
  return CLI::Validator(
      [check = std::move(check)](std::string& text) { return check(text); },
      "");
}

CLI::Validator OneOf(const std::string& choices) {
  return Checked([choices](const std::string& text) -> std::string {
    for (const std::string& choice : CLI::detail::split(choices, '|')) {
      if (choice == text) return "";
    }
    std::string expected = choices;
    for (size_t bar; (bar = expected.rfind('|')) != expected.npos;) {
      expected.replace(bar, 1,
                       expected.find(" or ") == expected.npos ? " or " : ", ");
    }
    return fmt::format("expected {}, found \"{}\"", expected, text);
  });
}

CLI::Validator IsDigest(base::DigestAlgorithm algorithm) {
  return Checked([algorithm](const std::string& text) {
    return base::Digest::FromHex(algorithm, text).status().message();
  });
}

// Builds the commands and knows which of them was chosen.
class Parser {
 public:
  Parser(const Environment& environment, std::string_view program)
      : root_(
            "Brings VM images onto this node's disks, proves them, keeps "
            "them.",
            std::string(program)) {
    root_.require_subcommand(1);
    root_.get_formatter()->column_width(34);
    const auto address = environment.find("BIM_ADDRESS");
    if (address != environment.end())
      invocation_.client.address = address->second;
    root_
        .add_option("--address", invocation_.client.address,
                    "The daemon: host:port or unix:/path (BIM_ADDRESS); else "
                    "unix:/run/bim/bim.sock if it exists, else "
                    "127.0.0.1:9500")
        ->type_name("ADDRESS");
    root_
        .add_option_function<std::string>(
            "-o,--output",
            [this](const std::string& format) {
              invocation_.client.output =
                  format == "json" ? OutputFormat::kJson : OutputFormat::kTable;
            },
            "A table for people, or JSON")
        ->type_name(kFormats)
        ->check(OneOf(kFormats));
    root_
        .add_option_function<std::string>(
            "--timeout",
            [this](const std::string& text) {
              invocation_.client.timeout = *ParseDuration(text);
            },
            "Give up after this time, such as 30s; else 30s for what answers "
            "at once, and no limit for what waits")
        ->type_name("DURATION")
        ->check(Checked([](const std::string& text) -> std::string {
          const auto duration = ParseDuration(text);
          if (!duration.ok()) return duration.status().message();
          return duration->count() > 0 ? "" : "expected more than 0";
        }));
    root_.add_flag("--debug", debug_,
                   "Log at level debug; of daemon and data-source only");
    AddDaemon();
    AddImage();
    AddDisk();
    AddLimits();
    AddHandover();
    AddVersion();
    AddConfig();
    AddDrain();
    AddManager();
    AddHistory();
    AddUpgrade();
    AddCompletion();
    AddDataSource();
    AddBackingImage();
    root_.footer(kExitCodeHelp);  // after the others, who would inherit it
    // Global options may stand anywhere.
    ForEach(root_, [](CLI::App& app) { app.fallthrough(); });
  }

  std::variant<Invocation, ParseEnd> Parse(std::vector<std::string> arguments) {
    std::reverse(arguments.begin(), arguments.end());
    try {
      root_.parse(arguments);
    } catch (const CLI::CallForHelp&) {
      return ParseEnd{ExitCode::kOk, Help()};
    } catch (const CLI::ParseError& error) {
      return ParseEnd{ExitCode::kUsage, Explain(error)};
    }
    finish_();
    if (debug_) SetDebug();
    if (std::holds_alternative<LonghornCommand>(invocation_.command)) {
      std::string wrong;
      if (root_.get_option("--address")->count() > 0) {
        wrong = "expected --url, found --address";
      } else if (root_.get_option("--output")->count() > 0 &&
                 invocation_.client.output == OutputFormat::kTable) {
        wrong = "--output: expected json, found \"table\"";
      }
      if (!wrong.empty()) {
        const std::string path = PathOf(Deepest());
        return ParseEnd{ExitCode::kUsage, fmt::format("{}: {} (see {} --help)",
                                                      path, wrong, path)};
      }
    }
    return invocation_;
  }

  CommandNode Describe() { return Describe(root_); }

 private:
  // A command that, once chosen, becomes a C filled by its options. `missing`
  // names what is required of a C and not there; empty: nothing.
  template <typename C>
  CLI::App* Leaf(CLI::App* parent, const std::string& name,
                 const std::string& help,
                 const std::function<void(CLI::App&, C&)>& add_options,
                 const std::function<std::string(const C&)>& missing = {}) {
    CLI::App* app = parent->add_subcommand(name, help);
    auto command = std::make_shared<C>();
    add_options(*app, *command);
    // The last one of a chain of commands wins: it is the chosen leaf.
    app->callback([this, command, missing] {
      if (const std::string what = missing ? missing(*command) : "";
          !what.empty()) {
        throw CLI::RequiredError(what);
      }
      finish_ = [this, command] { invocation_.command = *command; };
    });
    return app;
  }
  CLI::App* Group(const std::string& name, const std::string& help) {
    CLI::App* app = root_.add_subcommand(name, help);
    app->require_subcommand(1);
    return app;
  }

  // Before the flags: one that sets the level says more.
  void SetDebug() {
    const FlagValue level{"log.level", {"debug"}};
    Command& command = invocation_.command;
    if (auto* daemon = std::get_if<DaemonCommand>(&command)) {
      daemon->flags.insert(daemon->flags.begin(), level);
    } else if (auto* check = std::get_if<ConfigCheckCommand>(&command)) {
      check->flags.insert(check->flags.begin(), level);
    } else if (auto* source = std::get_if<DataSourceCommand>(&command)) {
      source->debug = true;
    }
  }

  static void AddName(CLI::App& app, std::string& name) {
    app.add_option("NAME", name, "Name of the image")
        ->required()
        ->type_name("");
  }
  static void AddUuid(CLI::App& app, std::string& uuid) {
    app.add_option("--uuid", uuid,
                   "UUID of the image, needed when several have the name")
        ->type_name("UUID");
  }
  static CLI::Option* AddDisks(CLI::App& app, std::vector<std::string>& disks,
                               const std::string& help) {
    return app.add_option("--disk", disks, help)
        ->type_name("DISK")
        ->allow_extra_args(false);
  }

  static void AddWanted(CLI::App& app, WantedImage& c) {
    AddName(app, c.name);
    app.add_option("--uuid", c.uuid, "UUID of the image; else one is generated")
        ->type_name("UUID");
    app.add_option("--sha512", c.sha512, "Expected SHA-512 of the file")
        ->type_name("HEX")
        ->check(IsDigest(base::DigestAlgorithm::kSha512));
    app.add_option("--sha256", c.sha256, "Expected SHA-256 of the file")
        ->type_name("HEX")
        ->check(IsDigest(base::DigestAlgorithm::kSha256));
    auto* disk =
        AddDisks(app, c.disks, "UUID or path of a disk; repeatable; else all");
    app.add_flag("--all", c.all, "On all disks, also those added later")
        ->excludes(disk);
    app.add_flag("--wait", c.wait,
                 "Wait until it is ready everywhere, or failed");
  }

  // An option whose value is a size.
  static CLI::Option* AddSize(CLI::App& app, const std::string& name,
                              std::function<void(uint64_t)> take,
                              const std::string& help) {
    return app
        .add_option_function<std::string>(
            name,
            [take = std::move(take)](const std::string& text) {
              take(*ParseSize(text));
            },
            help)
        ->type_name("SIZE")
        ->check(Checked([](const std::string& text) {
          return ParseSize(text).status().message();
        }));
  }

  // A flag for each setting.
  template <typename C>
  static void AddSettings(CLI::App& app, C& command) {
    app.add_option("--config", command.config_path,
                   fmt::format("Configuration file (BIM_CONFIG); else {} if it "
                               "exists",
                               kDefaultConfigPath))
        ->type_name(kPath);
    for (const Setting& setting : Settings()) {
      std::string names = setting.FlagName();
      if (!setting.short_flag.empty()) {
        names = fmt::format("{},{}", setting.short_flag, names);
      }
      const bool list = setting.kind == Kind::kList;
      auto* option = app.add_option_function<std::vector<std::string>>(
          names,
          [&command,
           name = setting.Name()](const std::vector<std::string>& values) {
            command.flags.push_back({name, values});
          },
          fmt::format("{}{} [{}]", setting.help, list ? "; repeatable" : "",
                      setting.default_text));
      option->allow_extra_args(false)->type_name("VALUE");
      if (!list) option->expected(1);
    }
  }

  void AddDaemon() {
    Leaf<DaemonCommand>(
        &root_, "daemon", "Run the daemon of this node",
        [](CLI::App& app, DaemonCommand& c) {
          AddSettings(app, c);
          app.add_flag("--detach", c.detach,
                       "Run in the background; end when it serves, or cannot");
        })
        ->footer(
            "Each flag is a setting; see docs/configuration.md. A flag "
            "wins over the environment (BIM_<SECTION>_<KEY>), that over "
            "the file.");
  }

  void AddImage() {
    CLI::App* image = Group("image", "Images on this node's disks");
    Leaf<ImageEnsureCommand>(
        image, "ensure", "Say that an image is wanted, and where it is from",
        [](CLI::App& app, ImageEnsureCommand& c) {
          AddWanted(app, c);
          auto* url = app.add_option("--url", c.url,
                                     "http, https or file URL of the image")
                          ->type_name("URL");
          auto* peer =
              app.add_option("--peer", c.peers,
                             "Another daemon (host:port of its API) that may "
                             "have the image; repeatable; needs --uuid without "
                             "--url")
                  ->type_name("ADDRESS")
                  ->allow_extra_args(false);
          auto* credential =
              app.add_option("--credential", c.credential,
                             "Name of a credential that the daemon has")
                  ->type_name("NAME");
          app.add_flag("--upload", c.upload,
                       "The bytes come by HTTP, as from bim image upload")
              ->excludes(url)
              ->excludes(peer)
              ->excludes(credential);
          AddSize(
              app, "--size", [&c](uint64_t size) { c.size_bytes = size; },
              "Exact size of the file, such as 1073741824 or 1GiB");
        },
        [](const ImageEnsureCommand& c) -> std::string {
          const bool has_source =
              !c.url.empty() || !c.peers.empty() || c.upload;
          return has_source ? "" : "--url, --peer or --upload";
        });
    Leaf<ImageUploadCommand>(
        image, "upload", "Bring an image to the node from a file here",
        [](CLI::App& app, ImageUploadCommand& c) {
          AddWanted(app, c);
          app.add_option("FILE", c.file, "The file to bring")
              ->required()
              ->type_name(kPath);
        });
    Leaf<ImageGetCommand>(image, "get", "Show an image and its copies",
                          [](CLI::App& app, ImageGetCommand& c) {
                            AddName(app, c.name);
                            AddUuid(app, c.uuid);
                          });
    Leaf<ImageListCommand>(image, "list", "List all images",
                           [](CLI::App&, ImageListCommand&) {});
    Leaf<ImageWatchCommand>(
        image, "watch", "Show images, and each change of them",
        [](CLI::App& app, ImageWatchCommand& c) {
          app.add_option("NAME", c.name, "Only images of this name")
              ->type_name("");
        });
    Leaf<ImageRemoveCommand>(
        image, "remove", "Forget an image and delete its files",
        [](CLI::App& app, ImageRemoveCommand& c) {
          AddName(app, c.name);
          AddUuid(app, c.uuid);
          app.add_flag("--force", c.force,
                       "Even if a process has a file of it open");
        });
    Leaf<ImageVerifyCommand>(
        image, "verify", "Read the copies again and compare their digests",
        [](CLI::App& app, ImageVerifyCommand& c) {
          AddName(app, c.name);
          AddUuid(app, c.uuid);
          AddDisks(app, c.disks,
                   "Only the copy on this disk (UUID or path); repeatable");
          app.add_flag("--repair", c.repair,
                       "Replace damaged parts by those of another disk or of "
                       "a peer");
        });
    Leaf<ImageExportCommand>(
        image, "export", "Copy an image out of the node, to a file",
        [](CLI::App& app, ImageExportCommand& c) {
          AddName(app, c.name);
          AddUuid(app, c.uuid);
          app.add_option("--disk", c.disk, "From this disk (UUID or path)")
              ->type_name("DISK");
          app.add_option("-f,--file", c.file,
                         "The file to write, or - for standard output")
              ->required()
              ->type_name(kPath);
          app.add_flag("--force", c.force, "Overwrite an existing file");
          app.add_flag("--zstd", c.zstd, "Write it compressed, as a zstd file");
        });
  }

  void AddDisk() {
    CLI::App* disk = Group("disk", "Disks of this node");
    Leaf<DiskListCommand>(disk, "list", "List the disks",
                          [](CLI::App&, DiskListCommand&) {});
    Leaf<DiskAddCommand>(
        disk, "add", "Add a disk and remember it",
        [](CLI::App& app, DiskAddCommand& c) {
          app.add_option("PATH", c.path,
                         "Absolute path of the disk's directory")
              ->required()
              ->type_name(kPath);
          app.add_flag("--init", c.init,
                       "Make a new disk of a directory without identity file");
          app.add_option("--uuid", c.uuid,
                         "The identity it must have, or gets by --init")
              ->type_name("UUID");
        });
    Leaf<DiskRemoveCommand>(
        disk, "remove", "Forget a disk; nothing on it is deleted",
        [](CLI::App& app, DiskRemoveCommand& c) {
          app.add_option("DISK", c.disk, "UUID or path of the disk")
              ->required()
              ->type_name("");
          app.add_flag("--force", c.force,
                       "Even if images are wanted on it; cancels transfers");
        });
    Leaf<DiskAdoptCommand>(
        disk, "adopt", "Make what another manager left on a disk its own",
        [](CLI::App& app, DiskAdoptCommand& c) {
          app.add_option("DISK", c.disk, "UUID or path of the disk")
              ->required()
              ->type_name("");
          AddDryRun(app, c.dry_run);
        });
    Leaf<DiskMigrateCommand>(
        disk, "migrate",
        "Raise the layout of disks that nobody owns to this program's",
        [](CLI::App& app, DiskMigrateCommand& c) {
          AddChoice(app, c);
          AddDryRun(app, c.dry_run);
        });
  }

  void AddLimits() {
    CLI::App* limits = Group("limits", "How much and how fast, while it runs");
    Leaf<LimitsGetCommand>(limits, "get", "Show the limits",
                           [](CLI::App&, LimitsGetCommand&) {});
    Leaf<LimitsSetCommand>(
        limits, "set", "Change limits until the daemon is restarted",
        [](CLI::App& app, LimitsSetCommand& c) {
          AddSize(
              app, "--download-rate",
              [&c](uint64_t rate) { c.download_rate = rate; },
              "Of all downloads together, a second, such as 100MiB; 0: no "
              "limit");
          AddSize(
              app, "--peer-rate", [&c](uint64_t rate) { c.peer_rate = rate; },
              "Received from peers, and sent by the data port, a second; 0: "
              "no limit");
          AddSize(
              app, "--background-read-rate",
              [&c](uint64_t rate) { c.background_read_rate = rate; },
              "Of verifications and scans, a second; 0: no limit");
          app.add_option("--transfers", c.transfers,
                         "Transfers at once, on the whole node")
              ->type_name("N");
          app.add_option("--transfers-per-disk", c.transfers_per_disk,
                         "Transfers at once, to one disk")
              ->type_name("N");
        },
        [](const LimitsSetCommand& c) -> std::string {
          const bool any = c.download_rate || c.peer_rate ||
                           c.background_read_rate || c.transfers ||
                           c.transfers_per_disk;
          return any ? "" : "at least one limit";
        });
  }

  void AddHandover() {
    using Call = HandoverCommand::Call;
    CLI::App* group =
        Group("handover", "Give this node's disks to another manager");
    const auto add = [&](Call call, const std::string& name,
                         const std::string& help, const auto& more) {
      Leaf<HandoverCommand>(group, name, help,
                            [&](CLI::App& app, HandoverCommand& c) {
                              c.call = call;
                              more(app, c);
                            });
    };
    add(Call::kBegin, "begin",
        "Ask the owner of the disks to hand them over to the manager that is "
        "called",
        [](CLI::App& app, HandoverCommand& c) {
          app.add_flag("--auto", c.automatic,
                       "Confirm by itself when the new manager is ready");
          AddDryRun(app, c.dry_run);
        });
    add(Call::kConfirm, "confirm",
        "The disks are the new manager's; at either of both",
        [](CLI::App& app, HandoverCommand& c) {
          app.add_flag("--force", c.force,
                       "At the new manager: kill an owner that does not "
                       "answer");
          AddDryRun(app, c.dry_run);
        });
    add(Call::kRollback, "rollback",
        "The disks stay their owner's; at either of both",
        [](CLI::App& app, HandoverCommand& c) { AddDryRun(app, c.dry_run); });
    add(Call::kStatus, "status", "Show whether a hand-over goes on",
        [](CLI::App& app, HandoverCommand& c) {
          app.add_flag("--watch", c.watch, "Again whenever it changes");
        });
    add(Call::kHistory, "history",
        "Show what the disks know of hand-overs, the newest last",
        [](CLI::App& app, HandoverCommand& c) {
          app.add_option("--limit", c.limit, "The newest N only; 0: all")
              ->type_name("N");
        });
  }

  void AddVersion() {
    Leaf<VersionCommand>(
        &root_, "version", "Show the versions of this program and the daemon",
        [this](CLI::App& app, VersionCommand& c) {
          app.add_flag("--client-only", c.client_only, "Do not ask the daemon");
          c.longhorn = root_.get_name() == kLonghornProgram;
          app.add_option_function<std::string>(
                 "--url",
                 [this, &c](const std::string& url) {
                   invocation_.client.url = url;
                   c.longhorn = true;
                 },
                 "Ask the manager there (host:port) by Longhorn's API; show "
                 "the versions of that [localhost:8000]")
              ->type_name("ADDRESS");
        });
  }

  void AddConfig() {
    CLI::App* config = Group("config", "The daemon's configuration");
    Leaf<ConfigCheckCommand>(
        config, "check",
        "Check the configuration; show each value and where it came from",
        [](CLI::App& app, ConfigCheckCommand& c) { AddSettings(app, c); });
  }

  static void AddChoice(CLI::App& app, DiskChoice& c) {
    app.add_option("--disk", c.paths,
                   "Path of a disk; repeatable; else the disks that the daemon "
                   "of the configuration uses")
        ->type_name(kPath)
        ->allow_extra_args(false);
    app.add_option("--config", c.config_path,
                   fmt::format("Configuration file (BIM_CONFIG); else {} if it "
                               "exists",
                               kDefaultConfigPath))
        ->type_name(kPath);
  }
  static void AddDryRun(CLI::App& app, bool& dry_run) {
    app.add_flag("--dry-run", dry_run,
                 "Say what would be done; change nothing");
  }
  static std::string DurationMistake(const std::string& text) {
    return ParseDuration(text).status().message();
  }

  void AddDrain() {
    Leaf<DrainCommand>(
        &root_, "drain", "Take no new work, and wait for what runs",
        [](CLI::App& app, DrainCommand& c) {
          c.at_most = std::chrono::seconds(20);
          app.add_option_function<std::string>(
                 "--for",
                 [&c](const std::string& text) {
                   c.at_most = *ParseDuration(text);
                 },
                 "Wait so long at most; 20s unless told")
              ->type_name("DURATION")
              ->check(Checked(DurationMistake));
          app.add_flag("--cancel", c.cancel, "Take new work again, instead");
          AddDryRun(app, c.dry_run);
        });
  }

  void AddManager() {
    CLI::App* manager =
        Group("manager", "Managers that owned, or claim, the disks");
    Leaf<ManagerListCommand>(
        manager, "list", "List them by disk, and whether they live",
        [](CLI::App& app, ManagerListCommand& c) { AddChoice(app, c); });
    Leaf<ManagerCleanupCommand>(
        manager, "cleanup",
        "Remove the records of those that are dead, never the owner's",
        [](CLI::App& app, ManagerCleanupCommand& c) {
          AddChoice(app, c);
          app.add_flag("--force", c.force,
                       "Also of those that cannot be seen from here, and "
                       "damaged ones");
          AddDryRun(app, c.dry_run);
        });
  }

  void AddHistory() {
    Leaf<HistoryCommand>(
        &root_, "history", "Show what happened to images, the newest last",
        [](CLI::App& app, HistoryCommand& c) {
          AddChoice(app, c);
          app.add_option("--image", c.image, "Only of images with this name")
              ->type_name("NAME");
          app.add_option("--limit", c.limit, "The newest N only; 0: all")
              ->type_name("N");
        });
    Leaf<PruneCommand>(
        &root_, "prune", "Delete old entries of the history, and nothing else",
        [](CLI::App& app, PruneCommand& c) {
          AddChoice(app, c);
          app.add_option_function<std::string>(
                 "--older-than",
                 [&c](const std::string& text) {
                   c.older_than = *ParseDuration(text);
                 },
                 "Entries from before this time, such as 30d or 12h")
              ->required()
              ->type_name("DURATION")
              ->check(Checked(DurationMistake));
          AddDryRun(app, c.dry_run);
        });
  }

  void AddUpgrade() {
    CLI::App* upgrade = Group("upgrade", "Before another version takes over");
    Leaf<UpgradeCheckCommand>(
        upgrade, "check",
        "Say whether this program can take over these disks; touch nothing",
        [](CLI::App& app, UpgradeCheckCommand& c) { AddChoice(app, c); })
        ->footer(kUpgradeCheckExitCodeHelp);
  }

  void AddCompletion() {
    Leaf<CompletionCommand>(
        &root_, "completion", "Print the completions for a shell",
        [](CLI::App& app, CompletionCommand& c) {
          app.add_option("SHELL", c.shell, "bash, zsh or fish")
              ->required()
              ->type_name(kShells)
              ->check(OneOf(kShells));
        });
  }

  // KEY=VALUE, several after a flag, and the flag several times. The text of
  // one that is wrong may be a secret: `shown` says whether to show it.
  static void AddPairs(CLI::App& app, const std::string& name,
                       std::map<std::string, std::string>& pairs, bool shown,
                       const std::string& help) {
    app.add_option_function<std::vector<std::string>>(
           name,
           [&pairs](const std::vector<std::string>& texts) {
             for (const std::string& text : texts) {
               const size_t equals = text.find('=');
               pairs[text.substr(0, equals)] = text.substr(equals + 1);
             }
           },
           help)
        ->type_name("KEY=VALUE")
        ->check(Checked([shown](const std::string& text) -> std::string {
          const size_t equals = text.find('=');
          if (equals != text.npos && equals > 0) return "";
          return shown ? fmt::format("expected KEY=VALUE, found \"{}\"", text)
                       : "expected KEY=VALUE";
        }));
  }

  void AddDataSource() {
    Leaf<DataSourceCommand>(
        &root_, "data-source",
        "Make the first file of an image, as Longhorn's control plane asks",
        [](CLI::App& app, DataSourceCommand& c) {
          const auto add = [&app](const char* name, std::string& text,
                                  const char* help, const char* value) {
            return app.add_option(name, text, help)->type_name(value);
          };
          add("--name", c.name, "Name of the image", "NAME")->required();
          add("--uuid", c.uuid, "UUID of the image", "UUID")->required();
          add("--source-type", c.source_type,
              "download, upload, export-from-volume, restore or clone", "TYPE")
              ->required();
          AddPairs(app, "--parameters", c.parameters, /*shown=*/true,
                   "Of the source; repeatable");
          add("--checksum", c.checksum, "Expected SHA-512 of the file", "HEX");
          AddPairs(app, "--credential", c.credentials, /*shown=*/false,
                   "What the source is reached with; repeatable");
          add("--listen", c.listen, "Address of the service for this file",
              "ADDRESS")
              ->capture_default_str();
          add("--sync-listen", c.sync_listen,
              "Address of the service for files by path", "ADDRESS")
              ->capture_default_str();
          add("--receive-listen", c.receive_listen,
              "Address that a volume's replica sends to", "ADDRESS")
              ->capture_default_str();
          add("--disk", c.disk_path, "Path of the disk", kPath)
              ->capture_default_str();
        });
  }

  // One call of Longhorn's API. `address_flag`: of the other side, if any.
  void AddCall(CLI::App* group, LonghornCommand::Call call,
               const std::string& name, const std::string& help,
               const std::string& address_flag = {},
               const std::string& alias = {}) {
    using Call = LonghornCommand::Call;
    const bool makes = call == Call::kSync || call == Call::kFetch;
    CLI::App* app = Leaf<LonghornCommand>(
        group, name, help, [&](CLI::App& app, LonghornCommand& c) {
          c.call = call;
          AddUrl(app);
          if (call == Call::kList) return;
          app.add_option("--name", c.name, "Name of the image")
              ->type_name("NAME");
          app.add_option("--uuid", c.uuid, "UUID of the image")
              ->type_name("UUID");
          if (makes) {
            app.add_option_function<std::string>(
                   "--size",
                   [&c](const std::string& text) { c.size = *Bytes(text); },
                   "Size of the file in bytes")
                ->type_name("BYTES")
                ->check(Checked([](const std::string& text) -> std::string {
                  return Bytes(text) ? ""
                                     : fmt::format(
                                           "expected a number of "
                                           "bytes, found \"{}\"",
                                           text);
                }));
            app.add_option("--checksum", c.checksum,
                           "Expected SHA-512 of the file")
                ->type_name("HEX");
          }
          if (!address_flag.empty()) {
            app.add_option(address_flag, c.address,
                           "host:port of the other side")
                ->type_name("ADDRESS");
          }
        });
    if (!alias.empty()) app->alias(alias);
  }
  static std::optional<int64_t> Bytes(std::string_view text) {
    int64_t bytes = 0;
    const auto [end, error] =
        std::from_chars(text.data(), text.data() + text.size(), bytes);
    if (error != std::errc() || end != text.data() + text.size() || bytes < 0) {
      return std::nullopt;
    }
    return bytes;
  }
  void AddUrl(CLI::App& app) {
    app.add_option("--url", invocation_.client.url,
                   "The manager, host:port [localhost:8000]")
        ->type_name("ADDRESS");
  }

  void AddBackingImage() {
    using Call = LonghornCommand::Call;
    CLI::App* group =
        Group("backing-image", "Images of a manager, by Longhorn's API");
    AddUrl(*group);
    AddCall(group, Call::kSync, "file-sync",
            "Have a manager take an image from another one", "--from-address");
    AddCall(group, Call::kFetch, "sync",
            "Have a manager take the file of a data source, or the one that "
            "lies there",
            "--data-source-address");
    AddCall(group, Call::kGet, "get", "Show an image");
    AddCall(group, Call::kDelete, "delete", "Delete an image", "", "del");
    AddCall(group, Call::kPrepareDownload, "prepare-download",
            "Show where an image can be downloaded");
    AddCall(group, Call::kSend, "send", "Send an image to a receiver",
            "--to-address");
    AddCall(group, Call::kList, "list", "Show all images", "", "ls");
  }

  static void ForEach(CLI::App& app,
                      const std::function<void(CLI::App&)>& visit) {
    visit(app);
    for (CLI::App* child :
         app.get_subcommands([](CLI::App*) { return true; })) {
      ForEach(*child, visit);
    }
  }

  // The command that the words led to, as far as they were understood.
  CLI::App& Deepest() {
    CLI::App* app = &root_;
    while (!app->get_subcommands().empty()) app = app->get_subcommands().back();
    return *app;
  }

  static std::string PathOf(CLI::App& app) {
    return app.get_parent() ? PathOf(*app.get_parent()) + " " + app.get_name()
                            : app.get_name();
  }

  std::string Help() {
    CLI::App& app = Deepest();
    std::string help =
        app.help(app.get_parent() ? PathOf(*app.get_parent()) : std::string());
    if (app.get_parent()) {
      help +=
          "\nGlobal options: --address ADDRESS, -o table|json, --timeout "
          "DURATION; see " +
          root_.get_name() + " --help\n";
    }
    return help;
  }

  // One line for a person.
  std::string Explain(const CLI::ParseError& error) {
    CLI::App& app = Deepest();
    const std::string path = PathOf(app);
    const std::string see = fmt::format(" (see {} --help)", path);
    std::vector<std::string> commands;
    for (CLI::App* child :
         app.get_subcommands([](CLI::App*) { return true; })) {
      commands.push_back(child->get_name());
    }
    const std::vector<std::string> rest = root_.remaining(true);
    for (const std::string& word : rest) {
      if (word.size() > 1 && word.starts_with('-')) {
        return fmt::format("{}: unknown option {}{}{}", path, word,
                           DidYouMean(word, OptionNames(app)), see);
      }
      if (!commands.empty()) {
        std::string hint = DidYouMean(word, commands);
        if (hint.empty()) {
          hint = fmt::format("; expected {}", fmt::join(commands, ", "));
        }
        return fmt::format("{}: unknown command \"{}\"{}{}", path, word, hint,
                           see);
      }
      return fmt::format("{}: unexpected argument \"{}\"{}", path, word, see);
    }
    if (!commands.empty() && dynamic_cast<const CLI::RequiredError*>(&error)) {
      return fmt::format("{}: expected a command: {}{}", path,
                         fmt::join(commands, ", "), see);
    }
    std::string text = error.what();
    // CLI11's own words for two common mistakes.
    if (dynamic_cast<const CLI::ArgumentMismatch*>(&error) &&
        text.find("required") != text.npos) {
      text = text.substr(0, text.find(':')) + (text.find("At Most") != text.npos
                                                   ? " was given more than once"
                                                   : " needs a value");
    }
    std::replace(text.begin(), text.end(), '\n', ' ');
    return fmt::format("{}: {}{}", path, text, see);
  }

  std::vector<std::string> OptionNames(CLI::App& app) {
    std::vector<std::string> names;
    for (CLI::App* from : {&app, &root_}) {
      for (const OptionNode& option : Describe(*from).options) {
        names.insert(names.end(), option.names.begin(), option.names.end());
      }
    }
    return names;
  }

  static CommandNode Describe(CLI::App& app) {
    CommandNode node{.name = app.get_name(), .help = app.get_description()};
    for (const CLI::Option* option : app.get_options()) {
      const std::string value = option->get_type_name();
      std::vector<std::string> choices;
      if (value.find('|') != value.npos) {
        choices = CLI::detail::split(value, '|');
      }
      if (option->get_positional()) {
        node.argument_choices = choices;
        node.argument_is_path = value == kPath;
        continue;
      }
      OptionNode described{.help = option->get_description(),
                           .takes_value = option->get_items_expected_max() > 0,
                           .choices = choices,
                           .is_path = value == kPath};
      for (const std::string& name : option->get_snames()) {
        described.names.push_back("-" + name);
      }
      for (const std::string& name : option->get_lnames()) {
        described.names.push_back("--" + name);
      }
      node.options.push_back(std::move(described));
    }
    for (CLI::App* child :
         app.get_subcommands([](CLI::App*) { return true; })) {
      node.commands.push_back(Describe(*child));
    }
    return node;
  }

  CLI::App root_;
  Invocation invocation_;
  bool debug_ = false;
  std::function<void()> finish_;
};

}  // namespace

std::string_view ProgramName(std::string_view argv0) {
  const size_t slash = argv0.rfind('/');
  const std::string_view last =
      slash == argv0.npos ? argv0 : argv0.substr(slash + 1);
  return last == kLonghornProgram ? kLonghornProgram : kProgram;
}

std::variant<Invocation, ParseEnd> ParseCommandLine(
    const std::vector<std::string>& arguments, const Environment& environment,
    std::string_view program) {
  return Parser(environment, program).Parse(arguments);
}

CommandNode DescribeCommands() { return Parser({}, kProgram).Describe(); }

}  // namespace bim::daemon
