#include "daemon/upgrade_check.h"

#include <fmt/format.h>
#include <sys/statvfs.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <utility>

#include "daemon/chosen_disks.h"
#include "daemon/table.h"
#include "daemon/units.h"
#include "pkg/base/names.h"
#include "pkg/manager/desired.h"
#include "pkg/store/layout.h"

namespace bim::daemon {
namespace {

using base::Code;
using store::HandoverPhase;

constexpr size_t kMaxNamed = 5;  // files in one finding

// The findings of one disk, as they come.
class Findings {
 public:
  explicit Findings(std::string disk) : disk_(std::move(disk)) {}

  void Ok(std::string check, std::string what) {
    Add(std::move(check), Level::kOk, std::move(what), "");
  }
  void Warn(std::string check, std::string what, std::string remedy) {
    Add(std::move(check), Level::kWarning, std::move(what), std::move(remedy));
  }
  void Stop(std::string check, std::string what, std::string remedy) {
    Add(std::move(check), Level::kStop, std::move(what), std::move(remedy));
  }
  std::vector<Finding> Take() { return std::move(all_); }

 private:
  void Add(std::string check, Level level, std::string what,
           std::string remedy) {
    all_.push_back(
        {disk_, std::move(check), level, std::move(what), std::move(remedy)});
  }

  const std::string disk_;
  std::vector<Finding> all_;
};

std::string Named(const store::OwnerRecord& owner) {
  return fmt::format("manager {} (version {}, epoch {}, process {})",
                     base::Printable(owner.manager_id),
                     base::Printable(owner.version), owner.epoch, owner.pid);
}

std::string Range(const meta::VersionRange& range) {
  return range.min == range.max
             ? fmt::format("API {}", range.min)
             : fmt::format("API {} to {}", range.min, range.max);
}

void JudgeOpened(const DiskFacts& facts, Findings& findings) {
  switch (facts.opened.code()) {
    case Code::kNotFound:
      findings.Stop("disk", facts.opened.message(),
                    "mount it, or take it out of the configuration (bim disk "
                    "remove)");
      return;
    case Code::kFailedPrecondition:
      findings.Stop("disk", facts.opened.message(),
                    "mount the right disk there");
      return;
    default:
      findings.Stop("disk", facts.opened.message(), "repair it");
  }
}

void JudgeFormat(const DiskFacts& facts, Findings& findings) {
  if (!facts.format.ok()) {
    if (facts.format.status().code() == Code::kNotFound) {
      findings.Ok("format", "no manager of this kind has owned it yet");
    } else {
      findings.Stop("format", facts.format.status().message(),
                    "restore the file");
    }
    return;
  }
  if (const base::Status readable = store::CheckFormat(*facts.format);
      !readable.ok()) {
    const bool newer = facts.format->min_version > meta::kDiskFormatVersion;
    findings.Stop("format", readable.message(),
                  newer ? "use a program that reads it"
                        : "take it over with a version in between first");
    return;
  }
  findings.Ok("format",
              fmt::format("disk format {}, readable (up to {})",
                          facts.format->version, meta::kDiskFormatVersion));
}

void JudgeOwner(const DiskFacts& facts, const Candidate& candidate,
                Findings& findings) {
  if (!facts.owned.ok()) {
    findings.Stop("owner", facts.owned.status().message(),
                  "make its lock usable");
    return;
  }
  if (!facts.owner.ok()) {
    const bool fresh = facts.format.status().code() == Code::kNotFound &&
                       facts.owner.status().code() == Code::kNotFound;
    if (fresh && !*facts.owned) return;  // the format says so
    if (fresh) {
      findings.Warn("owner", "a process holds its lock and takes it just now",
                    "check again");
      return;
    }
    findings.Stop("owner",
                  "the owner record cannot be read, and its epoch is never "
                  "guessed: " +
                      facts.owner.status().message(),
                  fmt::format("restore {}", store::kOwnerFile));
    return;
  }
  const store::OwnerRecord& owner = *facts.owner;
  if (!*facts.owned) {
    findings.Ok("owner", fmt::format("nobody owns it now; the last one was {}",
                                     Named(owner)));
    return;
  }
  findings.Ok("owner", fmt::format("owned by {}, which lives", Named(owner)));
  const meta::VersionRange theirs{owner.api_min_version, owner.api_version};
  if (meta::Overlap(theirs, candidate.api)) {
    findings.Ok("api", fmt::format("the owner speaks {}, this program {}",
                                   Range(theirs), Range(candidate.api)));
  } else {
    findings.Warn("api",
                  fmt::format("the owner speaks {}, this program {}: it will "
                              "be stopped, it cannot hand the disk over",
                              Range(theirs), Range(candidate.api)),
                  "plan for the time until the new one is ready, or go by a "
                  "version in between");
  }
}

void JudgeHandover(const DiskFacts& facts, const Candidate& candidate,
                   Findings& findings) {
  if (!facts.handover.ok()) {
    findings.Stop("handover", facts.handover.status().message(),
                  fmt::format("restore {}", store::kHandoverFile));
    return;
  }
  if (!*facts.handover) return;
  const store::HandoverRecord& record = **facts.handover;
  // (An automatic one needs nobody: the lock decides.)
  if (record.automatic) {
    findings.Ok("handover",
                fmt::format("an automatic hand-over from manager {} to {} is "
                            "{}",
                            record.owner, record.candidate,
                            store::HandoverPhaseName(record.phase)));
    return;
  }
  if (record.phase == HandoverPhase::kBegun) {
    findings.Stop(
        "handover",
        fmt::format("a hand-over from manager {} to {} is undecided",
                    record.owner, record.candidate),
        "decide it first: \"bim handover confirm\" gives the disk to the "
        "latter, \"bim handover rollback\" back to the former");
    return;
  }
  const bool confirmed = record.phase == HandoverPhase::kConfirmed;
  const std::string& whose = confirmed ? record.candidate : record.owner;
  const std::string what = fmt::format(
      "a hand-over from manager {} to {} was {}: only manager {} may take it",
      record.owner, record.candidate, confirmed ? "confirmed" : "rolled back",
      whose);
  if (candidate.manager_id.empty()) {
    findings.Warn("handover", what,
                  fmt::format("run the new one as manager {}", whose));
  } else if (store::MayClaim(record, candidate.manager_id) !=
             store::ClaimVerdict::kYes) {
    findings.Stop("handover", what,
                  fmt::format("run the new one as manager {} "
                              "(node.manager_id, or with its state_dir)",
                              whose));
  } else {
    findings.Ok("handover", what);
  }
}

void JudgeRecords(const DiskFacts& facts, Findings& findings) {
  if (facts.unreadable.empty()) {
    findings.Ok("records", fmt::format("records of what is wanted: {}, all "
                                       "readable",
                                       facts.wanted));
  } else {
    std::string what =
        fmt::format("records of what is wanted that cannot be read: {} (",
                    facts.unreadable.size());
    for (size_t i = 0; i < facts.unreadable.size(); ++i) {
      if (i == kMaxNamed) {
        what += "; and others";
        break;
      }
      what += (i == 0 ? "" : "; ") + facts.unreadable[i];
    }
    findings.Stop("records", what + ")",
                  "restore them, or use a program that reads them");
  }
  if (!facts.unfinished.ok()) {
    findings.Warn("unfinished", facts.unfinished.status().message(),
                  "look at the disk");
    return;
  }
  const auto& [resumable, others] = *facts.unfinished;
  const auto add = [&](const char* what, size_t count, const char* remedy) {
    if (count > 0) {
      findings.Warn("unfinished", fmt::format("{}: {}", what, count), remedy);
    }
  };
  add("transfers in work, which can be resumed", resumable,
      "wait for them, or let the new program go on");
  add("temp files without a journal, whose transfers start over", others,
      "wait for them, or let the new program begin again");
  add("removals that have not ended", facts.removing,
      "the new program ends them when it takes the disk");
}

}  // namespace

DiskFacts LookAtDisk(const manager::ListedDisk& disk) {
  DiskFacts facts;
  facts.path = disk.path;
  auto opened = Open(disk);
  if (!opened.ok()) {
    facts.opened = opened.status();
    return facts;
  }
  const io::Dir& root = opened->root;
  facts.uuid = opened->uuid;
  struct statvfs fs = {};
  if (::fstatvfs(root.fd(), &fs) != 0) {
    facts.opened = base::ErrnoError(errno, "cannot stat " + disk.path);
    return facts;
  }
  facts.read_only = (fs.f_flag & ST_RDONLY) != 0;
  facts.available_bytes = static_cast<uint64_t>(fs.f_bavail) * fs.f_frsize;
  facts.format = store::ReadFormat(root);
  facts.owned = store::IsOwned(root);
  facts.owner = store::ReadOwner(root);
  facts.handover = store::ReadHandover(root);
  facts.unfinished = store::CountUnfinished(root);
  const auto files = store::LoadDesired(root);
  if (!files.ok()) {
    if (files.status().code() != Code::kNotFound) {
      facts.unreadable.push_back(files.status().message());
    }
    return facts;
  }
  for (const store::DesiredFileContent& file : *files) {
    const auto desired = manager::DecodeDesired(file.json);
    if (!desired.ok()) {
      facts.unreadable.push_back(
          desired.status().WithContext(file.path).message());
      continue;
    }
    ++facts.wanted;
    if (desired->removing) ++facts.removing;
  }
  return facts;
}

std::string_view LevelName(Level level) {
  switch (level) {
    case Level::kOk:
      return "ok";
    case Level::kWarning:
      return "warning";
    case Level::kStop:
      return "stop";
  }
  return "stop";
}

std::vector<Finding> JudgeDisk(const DiskFacts& facts,
                               const Candidate& candidate) {
  Findings findings(facts.path);
  if (!facts.opened.ok()) {
    JudgeOpened(facts, findings);
    return findings.Take();
  }
  if (facts.read_only) {
    findings.Warn("disk",
                  "its file system is read-only: it cannot be owned, and its "
                  "images are unknown until it can",
                  "remount it read-write");
  }
  JudgeFormat(facts, findings);
  JudgeOwner(facts, candidate, findings);
  JudgeHandover(facts, candidate, findings);
  JudgeRecords(facts, findings);
  const std::string space =
      HumanBytes(facts.available_bytes) + " are available";
  if (facts.available_bytes < kMinMetadataBytes) {
    findings.Warn(
        "space", space + ": too little for records and manifests",
        fmt::format("free at least {}", HumanBytes(kMinMetadataBytes)));
  } else {
    findings.Ok("space", space);
  }
  return findings.Take();
}

std::vector<Finding> JudgeConfig(const base::Result<EffectiveConfig>& loaded) {
  Findings findings("");
  if (!loaded.ok()) {
    const std::string text = loaded.status().message();
    std::string_view rest = text;
    while (!rest.empty()) {
      const std::string_view line = rest.substr(0, rest.find('\n'));
      findings.Stop("configuration", std::string(line),
                    "correct it: the new program does not start with it");
      rest.remove_prefix(std::min(rest.size(), line.size() + 1));
    }
    return findings.Take();
  }
  for (const std::string& warning : loaded->warnings) {
    findings.Warn("configuration", warning, "see docs/configuration.md");
  }
  if (loaded->warnings.empty()) {
    findings.Ok("configuration", loaded->file.empty()
                                     ? "no configuration file; the settings "
                                       "are known"
                                     : loaded->file +
                                           ": the settings are "
                                           "known");
  }
  return findings.Take();
}

Level WorstOf(const std::vector<Finding>& findings) {
  Level worst = Level::kOk;
  for (const Finding& finding : findings) {
    worst = std::max(worst, finding.level);
  }
  return worst;
}

UpgradeExitCode ExitCodeOf(Level level) {
  switch (level) {
    case Level::kOk:
      return UpgradeExitCode::kOk;
    case Level::kWarning:
      return UpgradeExitCode::kWarnings;
    case Level::kStop:
      return UpgradeExitCode::kStop;
  }
  return UpgradeExitCode::kStop;
}

std::string RenderFindings(const std::vector<Finding>& findings) {
  Table table({{"DISK"}, {"LEVEL"}, {"WHAT"}, {"WHAT TO DO"}});
  for (const Finding& finding : findings) {
    table.AddRow({finding.disk, std::string(LevelName(finding.level)),
                  finding.what, finding.remedy});
  }
  return table.Render();
}

std::string FindingsJson(const std::vector<Finding>& findings) {
  using Json = nlohmann::ordered_json;
  Json json = {{"result", LevelName(WorstOf(findings))},
               {"version", meta::Version()},
               {"api_version", meta::kApiVersion},
               {"api_min_version", meta::kApiMinVersion},
               {"disk_format_version", meta::kDiskFormatVersion},
               {"disk_format_min_version", meta::kDiskFormatMinVersion},
               {"findings", Json::array()}};
  for (const Finding& finding : findings) {
    json["findings"].push_back({{"disk", finding.disk},
                                {"check", finding.check},
                                {"level", LevelName(finding.level)},
                                {"what", finding.what},
                                {"remedy", finding.remedy}});
  }
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

}  // namespace bim::daemon
