#include "daemon/local_commands.h"

#include <fmt/format.h>

#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>
#include <vector>

#include "daemon/chosen_disks.h"
#include "daemon/disk_history.h"
#include "daemon/disk_managers.h"
#include "daemon/disk_migrated.h"
#include "daemon/state_dir.h"
#include "daemon/upgrade_check.h"
#include "pkg/store/disk.h"
#include "pkg/store/history.h"
#include "pkg/store/managers.h"

namespace bim::daemon {
namespace {

using base::Code;
using base::Status;
using Disks = std::vector<manager::ListedDisk>;

void Print(const std::string& text) { std::fputs(text.c_str(), stdout); }

// What has gone wrong so far, disk by disk.
class Problems {
 public:
  void Add(const std::string& disk, const Status& status) {
    if (status.ok()) return;
    if (end_.ok()) end_.exit_code = ExitCodeOf(status.code());
    AddLine(disk, status.message());
  }
  void Note(const std::string& disk, const std::string& text) {
    AddLine(disk, text);
  }
  CommandEnd Take() { return std::move(end_); }

 private:
  void AddLine(const std::string& disk, const std::string& text) {
    if (!end_.message.empty()) end_.message += '\n';
    end_.message += fmt::format("disk {}: {}", disk, text);
  }
  CommandEnd end_;
};

CommandEnd EndOf(const Status& status) {
  return {ExitCodeOf(status.code()), status.message()};
}

// nullopt: nobody ever owned it.
base::Result<std::optional<store::OwnerRecord>> OwnerOf(const io::Dir& root) {
  auto owner = store::ReadOwner(root);
  if (owner.ok()) return std::optional(*std::move(owner));
  if (owner.status().code() == Code::kNotFound) {
    return std::optional<store::OwnerRecord>();
  }
  return owner.status().WithContext("the owner is not known");
}

base::Result<std::vector<ManagerRow>> ManagersOf(const io::Dir& root,
                                                 bool& owned) {
  BIM_ASSIGN_OR_RETURN(owned, store::IsOwned(root));
  BIM_ASSIGN_OR_RETURN(const auto owner, OwnerOf(root));
  BIM_ASSIGN_OR_RETURN(const auto found, store::ListManagers(root));
  return JudgeManagers(owner, owned, found);
}

DiskManagers ListOn(const manager::ListedDisk& disk) {
  DiskManagers list;
  list.path = disk.path;
  const auto opened = Open(disk);
  list.status = opened.status();
  if (!opened.ok()) return list;
  list.uuid = opened->uuid;
  auto rows = ManagersOf(opened->root, list.owned);
  list.status = rows.status();
  if (rows.ok()) list.managers = *std::move(rows);
  return list;
}

// Looks at the owner again: it may have come back since it was looked at.
Status RemoveUnlessOwner(const io::Dir& root, CleanedManager& one) {
  BIM_ASSIGN_OR_RETURN(const auto owner, OwnerOf(root));
  if (owner && owner->manager_id == one.row.manager_id) {
    one.step = {false, "it has become the owner"};
    return base::OkStatus();
  }
  return store::RemoveManager(root, one.row.manager_id);
}

DiskCleaned CleanUp(const manager::ListedDisk& disk, bool force, bool dry_run) {
  DiskCleaned cleaned;
  cleaned.path = disk.path;
  const auto opened = Open(disk);
  cleaned.status = opened.status();
  if (!opened.ok()) return cleaned;
  cleaned.uuid = opened->uuid;
  bool owned = false;
  auto rows = ManagersOf(opened->root, owned);
  cleaned.status = rows.status();
  if (!rows.ok()) return cleaned;
  for (ManagerRow& row : *rows) {
    CleanedManager one;
    one.step = PlanCleanup(row, force);
    one.row = std::move(row);
    if (one.step.remove && !dry_run && cleaned.status.ok()) {
      cleaned.status = RemoveUnlessOwner(opened->root, one);
    }
    if (one.step.remove && !cleaned.status.ok()) {
      one.step = {false, "it could not be removed"};
    }
    cleaned.managers.push_back(std::move(one));
  }
  return cleaned;
}

DiskMigrated MigrateOn(const manager::ListedDisk& disk, bool dry_run) {
  DiskMigrated migrated;
  migrated.path = disk.path;
  const auto opened = Open(disk);
  migrated.status = opened.status();
  if (!opened.ok()) return migrated;
  migrated.uuid = opened->uuid;
  const auto work = [&]() -> base::Result<store::Migration> {
    BIM_ASSIGN_OR_RETURN(const store::Migration plan,
                         store::PlanMigration(opened->root));
    if (dry_run || plan.from == plan.to) return plan;
    BIM_ASSIGN_OR_RETURN(const base::UniqueFd lock,
                         store::LockUnowned(opened->root));
    return store::Migrate(opened->root);
  };
  auto done = work();
  migrated.status = done.status();
  if (done.status().code() == Code::kNotFound) {
    migrated.status = base::NotFoundError(
        "no manager of this kind has owned it: there is nothing to migrate "
        "(\"bim disk adopt\" takes over what another one left)");
  }
  if (done.ok()) migrated.migration = *std::move(done);
  return migrated;
}

class Runner {
 public:
  Runner(const ClientOptions& options, const Environment& environment)
      : json_(options.output == OutputFormat::kJson),
        environment_(environment) {}

  CommandEnd operator()(const ManagerListCommand& command) {
    const auto disks = ChooseDisks(command, environment_);
    if (!disks.ok()) return EndOf(disks.status());
    std::vector<DiskManagers> lists;
    Problems problems;
    for (const manager::ListedDisk& disk : *disks) {
      lists.push_back(ListOn(disk));
      problems.Add(disk.path, lists.back().status);
    }
    Print(json_ ? ManagersJson(lists) : RenderManagers(lists));
    return problems.Take();
  }

  CommandEnd operator()(const ManagerCleanupCommand& command) {
    const auto disks = ChooseDisks(command, environment_);
    if (!disks.ok()) return EndOf(disks.status());
    std::vector<DiskCleaned> all;
    Problems problems;
    for (const manager::ListedDisk& disk : *disks) {
      all.push_back(CleanUp(disk, command.force, command.dry_run));
      problems.Add(disk.path, all.back().status);
    }
    Print(json_ ? CleanedJson(all, command.dry_run)
                : RenderCleaned(all, command.dry_run));
    return problems.Take();
  }

  CommandEnd operator()(const HistoryCommand& command) {
    const auto disks = ChooseDisks(command, environment_);
    if (!disks.ok()) return EndOf(disks.status());
    std::vector<DiskHistory> histories;
    Problems problems;
    for (const manager::ListedDisk& disk : *disks) {
      DiskHistory one;
      one.path = disk.path;
      const auto opened = Open(disk);
      one.status = opened.status();
      if (opened.ok()) {
        one.uuid = opened->uuid;
        auto read = store::ReadHistory(opened->root);
        one.status = read.status();
        if (read.ok()) one.history = *std::move(read);
      }
      problems.Add(disk.path, one.status);
      if (one.history.skipped > 0) {
        problems.Note(disk.path,
                      fmt::format("{} lines of its history cannot be read",
                                  one.history.skipped));
      }
      histories.push_back(std::move(one));
    }
    const std::vector<HistoryRow> rows =
        SelectHistory(histories, command.image, command.limit);
    Print(json_ ? HistoryJson(histories, rows) : RenderHistory(rows));
    return problems.Take();
  }

  CommandEnd operator()(const PruneCommand& command) {
    const auto disks = ChooseDisks(command, environment_);
    if (!disks.ok()) return EndOf(disks.status());
    const auto older_than =
        std::chrono::system_clock::now() - command.older_than;
    std::vector<DiskPruned> all;
    Problems problems;
    for (const manager::ListedDisk& disk : *disks) {
      DiskPruned one;
      one.path = disk.path;
      const auto opened = Open(disk);
      one.status = opened.status();
      if (opened.ok()) {
        one.uuid = opened->uuid;
        const auto pruned =
            store::PruneHistory(opened->root, older_than, command.dry_run);
        one.status = pruned.status();
        if (pruned.ok()) one.pruned = *pruned;
      }
      problems.Add(disk.path, one.status);
      all.push_back(std::move(one));
    }
    Print(json_ ? PrunedJson(all, command.dry_run)
                : RenderPruned(all, command.dry_run));
    return problems.Take();
  }

  CommandEnd operator()(const DiskMigrateCommand& command) {
    const auto disks = ChooseDisks(command, environment_);
    if (!disks.ok()) return EndOf(disks.status());
    std::vector<DiskMigrated> all;
    Problems problems;
    for (const manager::ListedDisk& disk : *disks) {
      all.push_back(MigrateOn(disk, command.dry_run));
      problems.Add(disk.path, all.back().status);
    }
    Print(json_ ? MigratedJson(all, command.dry_run)
                : RenderMigrated(all, command.dry_run));
    return problems.Take();
  }

  CommandEnd operator()(const UpgradeCheckCommand& command) {
    const auto loaded = LoadConfig(command.config_path, environment_, {});
    std::vector<Finding> findings = JudgeConfig(loaded);
    Candidate candidate;
    Disks disks = NamedDisks(command.paths);
    if (loaded.ok()) {
      const Config& config = loaded->config;
      candidate.manager_id = config.manager_id;
      if (candidate.manager_id.empty() && !config.ephemeral_state) {
        candidate.manager_id = StateDir::PeekManagerId(config.state_dir);
      }
      if (disks.empty()) {
        auto configured = ConfiguredDisks(config);
        if (!configured.ok()) {
          findings.push_back({"", "disks", Level::kStop,
                              configured.status().message(),
                              "restore the list of disks"});
        } else if (configured->empty()) {
          findings.push_back({"", "disks", Level::kWarning,
                              "the configuration names no disks, and none was "
                              "added",
                              "name those to check by --disk or --config"});
        } else {
          disks = *std::move(configured);
        }
      }
    }
    for (const manager::ListedDisk& disk : disks) {
      for (Finding& finding : JudgeDisk(LookAtDisk(disk), candidate)) {
        findings.push_back(std::move(finding));
      }
    }
    Print(json_ ? FindingsJson(findings) : RenderFindings(findings));
    return {static_cast<ExitCode>(ExitCodeOf(WorstOf(findings))), ""};
  }

  template <typename Other>
  CommandEnd operator()(const Other&) {
    std::abort();  // not one of these
  }

 private:
  const bool json_;
  const Environment& environment_;
};

}  // namespace

bool IsLocalCommand(const Command& command) {
  return std::holds_alternative<ManagerListCommand>(command) ||
         std::holds_alternative<ManagerCleanupCommand>(command) ||
         std::holds_alternative<HistoryCommand>(command) ||
         std::holds_alternative<PruneCommand>(command) ||
         std::holds_alternative<UpgradeCheckCommand>(command) ||
         std::holds_alternative<DiskMigrateCommand>(command);
}

CommandEnd RunLocalCommand(const Invocation& invocation,
                           const Environment& environment) {
  return std::visit(Runner(invocation.client, environment), invocation.command);
}

}  // namespace bim::daemon
