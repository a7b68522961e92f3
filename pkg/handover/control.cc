#include "pkg/handover/control.h"

#include <signal.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <thread>
#include <utility>

#include "pkg/base/log.h"
#include "pkg/io/dir.h"
#include "pkg/meta/version.h"
#include "pkg/store/disk.h"

namespace bim::handover {
namespace {

using base::Code;
using base::UniqueFd;

constexpr std::chrono::seconds kEndDeadline{10};

base::Status Signal(const std::string& path, int signal) {
  BIM_ASSIGN_OR_RETURN(const io::Dir root, io::Dir::Open(path));
  const auto lock = store::LockUnowned(root);
  if (lock.ok()) return base::OkStatus();  // nobody is left
  if (lock.status().code() != Code::kAborted) return lock.status();
  BIM_ASSIGN_OR_RETURN(const store::OwnerRecord owner, store::ReadOwner(root));
  const std::string who = "process " + std::to_string(owner.pid) +
                          " of manager " + owner.manager_id;
  UniqueFd process(static_cast<int>(
      ::syscall(SYS_pidfd_open, static_cast<pid_t>(owner.pid), 0)));
  // Looked at after it is held: the number is this process's from here on.
  const auto alive = store::IsAlive(owner);
  if (!alive) {
    return base::FailedPreconditionError(
        who + " is in another pid namespace: end it there");
  }
  if (!*alive || !process) {
    return base::FailedPreconditionError(
        "the disk at " + path + " is locked, but not by " + who +
        ", which its record names: end the process that holds " +
        store::kLockFile);
  }
  if (::syscall(SYS_pidfd_send_signal, process.get(), signal, nullptr, 0) !=
      0) {
    return base::ErrnoError(errno, "cannot signal " + who);
  }
  BIM_LOG_WARN("SIG{} to {}", sigabbrev_np(signal), who);
  return base::OkStatus();
}

}  // namespace

base::Status DecideAsOwner(const std::vector<std::string>& paths,
                           const std::string& manager_id, bool confirm,
                           bool dry_run) {
  struct Held {
    io::Dir root;
    UniqueFd lock;
    store::HandoverRecord record;
  };
  std::vector<Held> undecided;
  for (const std::string& path : paths) {
    auto root = io::Dir::Open(path);
    if (!root.ok()) continue;
    const auto record = store::ReadHandover(*root);
    if (!record.ok() || !*record || (*record)->owner != manager_id ||
        (*record)->phase != HandoverPhase::kBegun) {
      continue;
    }
    BIM_ASSIGN_OR_RETURN(UniqueFd lock, store::LockUnowned(*root));
    // (It may have been decided while we waited for nobody.)
    auto again = store::ReadHandover(*root);
    if (!again.ok() || !*again || (*again)->phase != HandoverPhase::kBegun) {
      continue;
    }
    undecided.push_back({*std::move(root), std::move(lock), **again});
  }
  if (undecided.empty()) return NothingToDecideError();
  if (dry_run) return base::OkStatus();
  for (Held& disk : undecided) {
    disk.record.phase =
        *WriteWhenFree(Role::kOwner, disk.record.phase, disk.record.automatic,
                       confirm ? Intent::kConfirm : Intent::kRollback);
    BIM_RETURN_IF_ERROR(store::DecideHandover(disk.root, disk.record,
                                              manager_id, meta::Version()));
  }
  return base::OkStatus();
}

std::vector<Control::Event> ReadEvents(const std::vector<std::string>& paths) {
  std::vector<Control::Event> events;
  for (const std::string& path : paths) {
    const auto root = io::Dir::Open(path);
    if (!root.ok()) continue;
    auto history = store::ReadHistory(*root);
    if (!history.ok()) continue;
    for (store::HistoryEntry& entry : history->entries) {
      if (entry.name.empty()) events.push_back({path, std::move(entry)});
    }
  }
  std::stable_sort(events.begin(), events.end(),
                   [](const auto& a, const auto& b) {
                     return a.entry.time_ns < b.entry.time_ns;
                   });
  return events;
}

base::Status EndOwner(const std::string& path) {
  BIM_RETURN_IF_ERROR(Signal(path, SIGKILL));
  BIM_ASSIGN_OR_RETURN(const io::Dir root, io::Dir::Open(path));
  const auto until = std::chrono::steady_clock::now() + kEndDeadline;
  while (store::LockUnowned(root).status().code() == Code::kAborted) {
    if (std::chrono::steady_clock::now() > until) {
      return base::DeadlineExceededError(
          "the owner of the disk at " + path +
          " was killed, but its lock is not free: it waits for a device");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return base::OkStatus();
}

base::Status TerminateOwner(const std::string& path) {
  return Signal(path, SIGTERM);
}

}  // namespace bim::handover
