#include "pkg/store/history.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <thread>
#include <utility>

#include "pkg/store/disk.h"

namespace bim::store {
namespace {

using base::Code;
using base::Result;
using base::Status;
using base::UniqueFd;
using nlohmann::json;
using std::chrono::steady_clock;
using std::chrono::system_clock;

constexpr mode_t kMode = 0600;
// Who holds the lock makes a small file durable at most.
constexpr std::chrono::seconds kLockWait{2};
constexpr std::chrono::microseconds kFirstPoll{50};
constexpr std::chrono::microseconds kLastPoll{5'000};
// Of names, uuids, manager ids and versions.
constexpr size_t kMaxWord = 64;

constexpr std::array kEvents = {
    HistoryEvent::kCreated,    HistoryEvent::kReady,
    HistoryEvent::kFailed,     HistoryEvent::kRemoved,
    HistoryEvent::kTakenOver,  HistoryEvent::kHandedOver,
    HistoryEvent::kBegun,      HistoryEvent::kConfirmed,
    HistoryEvent::kRolledBack, HistoryEvent::kInterrupted};

int64_t Nanoseconds(system_clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             time.time_since_epoch())
      .count();
}

// At most `max` characters of UTF-8; bytes that are none count as one each.
std::string Cut(std::string_view text, size_t max) {
  size_t end = 0;
  for (size_t characters = 0; end < text.size(); ++end) {
    const bool begins = (static_cast<unsigned char>(text[end]) & 0xC0) != 0x80;
    // (Continuation bytes without end are none.)
    if ((begins && characters++ == max) || end == 4 * max) break;
  }
  return std::string(text.substr(0, end));
}

struct OpenHistory {
  UniqueFd fd;
  struct stat st = {};  // of the file while it is locked
};

// The file that has the name now, locked: who waited for one that was replaced
// meanwhile begins anew.
Result<OpenHistory> OpenLocked(const io::Dir& root, int create) {
  const std::string shown = root.path() + "/" + kHistoryFile;
  const auto deadline = steady_clock::now() + kLockWait;
  const Status busy = base::DeadlineExceededError(
      shown + " is held by another process for too long");
  while (true) {
    OpenHistory file;
    BIM_ASSIGN_OR_RETURN(
        file.fd, root.OpenFile(kHistoryFile,
                               O_RDWR | O_APPEND | O_NONBLOCK | create, kMode));
    const int fd = file.fd.get();
    for (auto poll = kFirstPoll; ::flock(fd, LOCK_EX | LOCK_NB) != 0;
         poll = std::min(2 * poll, kLastPoll)) {
      if (errno != EWOULDBLOCK && errno != EINTR) {
        return base::ErrnoError(errno, "cannot lock " + shown);
      }
      if (steady_clock::now() >= deadline) return busy;
      std::this_thread::sleep_for(poll);
    }
    if (::fstat(fd, &file.st) != 0) {
      return base::ErrnoError(errno, "cannot stat " + shown);
    }
    if (!S_ISREG(file.st.st_mode)) {
      return base::FailedPreconditionError(shown + " is not a regular file");
    }
    const auto there = root.Stat(kHistoryFile);
    if (there.ok() && there->st_ino == file.st.st_ino &&
        there->st_dev == file.st.st_dev) {
      return file;
    }
    if (!there.ok() && there.status().code() != Code::kNotFound) {
      return there.status();
    }
    if (steady_clock::now() >= deadline) return busy;
  }
}

// The last kMaxHistoryBytes at most; then the first line may be cut.
Result<std::string> ReadTail(const io::Dir& root, int fd, uint64_t size) {
  const uint64_t count = std::min<uint64_t>(size, kMaxHistoryBytes);
  std::string text(count, '\0');
  BIM_ASSIGN_OR_RETURN(const size_t read,
                       io::PreadFull(fd, text.data(), count, size - count,
                                     root.path() + "/" + kHistoryFile));
  text.resize(read);
  return text;
}

// Without their newlines and without empty ones. The views are of `text`.
std::vector<std::string_view> Lines(std::string_view text) {
  std::vector<std::string_view> lines;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    if (end > 0) lines.push_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

// The newest lines, of about half of what is allowed.
std::string NewerHalf(std::string_view text) {
  std::vector<std::string_view> lines = Lines(text);
  size_t count = 0;
  size_t bytes = 0;
  size_t first = lines.size();
  for (; first > 0; --first) {
    const size_t size = lines[first - 1].size() + 1;
    if (size > kMaxHistoryLine) {
      lines[first - 1] = {};  // no entry of ours
      continue;
    }
    if (count == kMaxHistoryEntries / 2 ||
        bytes + size > kMaxHistoryBytes / 2) {
      break;
    }
    ++count;
    bytes += size;
  }
  std::string kept;
  kept.reserve(bytes + kMaxHistoryLine);
  for (size_t i = first; i < lines.size(); ++i) {
    if (lines[i].empty()) continue;
    kept += lines[i];
    kept += '\n';
  }
  return kept;
}

// `tail` is that of this process, its mutex held.
Status Append(const io::Dir& root, const HistoryEntry& entry,
              HistoryTail& tail) {
  std::string line = EncodeHistory(entry);
  BIM_ASSIGN_OR_RETURN(const OpenHistory file, OpenLocked(root, O_CREAT));
  const int fd = file.fd.get();
  const auto size = static_cast<uint64_t>(file.st.st_size);
  const bool too_large = size + line.size() + 1 > kMaxHistoryBytes;
  if (tail.inode != file.st.st_ino || tail.size != size) {
    tail.entries = 0;
    // Another process wrote to it, or it is new to this one.
    if (size > 0 && !too_large) {
      BIM_ASSIGN_OR_RETURN(const std::string text, ReadTail(root, fd, size));
      tail.entries =
          static_cast<size_t>(std::count(text.begin(), text.end(), '\n'));
      if (text.back() != '\n') {
        // Torn by a crash: what it has of a line is one.
        line.insert(0, "\n");
        ++tail.entries;
      }
    }
  }
  tail.inode = 0;
  if (too_large || tail.entries >= kMaxHistoryEntries) {
    BIM_ASSIGN_OR_RETURN(const std::string text, ReadTail(root, fd, size));
    if (line.front() == '\n') line.erase(0, 1);
    return root.ReplaceFile(kHistoryFile, NewerHalf(text) + line, kMode);
  }
  ssize_t written = 0;
  do {
    written = ::write(fd, line.data(), line.size());
  } while (written < 0 && errno == EINTR);
  if (written < 0) {
    return base::ErrnoError(errno,
                            "cannot write " + root.path() + "/" + kHistoryFile);
  }
  if (static_cast<size_t>(written) != line.size()) {
    // All or nothing. (What cannot be taken back is skipped by readers.)
    (void)!::ftruncate(fd, file.st.st_size);
    return base::ResourceExhaustedError(
        "cannot write " + root.path() + "/" + kHistoryFile +
        ": the disk took only a part of the entry");
  }
  tail.inode = file.st.st_ino;
  tail.size = size + line.size();
  ++tail.entries;
  return base::OkStatus();
}

}  // namespace

std::string_view HistoryEventName(HistoryEvent event) {
  switch (event) {
    case HistoryEvent::kCreated:
      return "created";
    case HistoryEvent::kReady:
      return "ready";
    case HistoryEvent::kFailed:
      return "failed";
    case HistoryEvent::kRemoved:
      return "removed";
    case HistoryEvent::kTakenOver:
      return "taken-over";
    case HistoryEvent::kHandedOver:
      return "handed-over";
    case HistoryEvent::kBegun:
      return "begun";
    case HistoryEvent::kConfirmed:
      return "confirmed";
    case HistoryEvent::kRolledBack:
      return "rolled-back";
    case HistoryEvent::kInterrupted:
      return "interrupted";
  }
  return "created";
}

std::string EncodeHistory(const HistoryEntry& entry) {
  json object = {{"timeNs", entry.time_ns},
                 {"what", HistoryEventName(entry.what)},
                 {"name", Cut(entry.name, kMaxWord)},
                 {"uuid", Cut(entry.uuid, kMaxWord)},
                 {"managerId", Cut(entry.manager_id, kMaxWord)},
                 {"version", Cut(entry.version, kMaxWord)},
                 {"epoch", entry.epoch}};
  // Bytes that are no text take more room than they had.
  for (size_t max = kMaxHistoryMessage;; max /= 2) {
    object["message"] = Cut(entry.message, max);
    std::string line =
        object.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
    if (line.size() <= kMaxHistoryLine) return line;
    BIM_CHECK(max > 0);
  }
}

Result<HistoryEntry> DecodeHistory(std::string_view line) {
  const json object = json::parse(line, nullptr, false);
  HistoryEntry entry;
  try {
    object.at("timeNs").get_to(entry.time_ns);
    object.at("name").get_to(entry.name);
    object.at("uuid").get_to(entry.uuid);
    object.at("message").get_to(entry.message);
    object.at("managerId").get_to(entry.manager_id);
    object.at("version").get_to(entry.version);
    object.at("epoch").get_to(entry.epoch);
    const auto what = object.at("what").get<std::string>();
    for (const HistoryEvent event : kEvents) {
      if (HistoryEventName(event) != what) continue;
      entry.what = event;
      return entry;
    }
    return base::DataLossError("an entry of the history is of the kind '" +
                               what + "', which is not known");
  } catch (const json::exception& error) {
    return base::DataLossError(
        std::string("an entry of the history is damaged: ") + error.what());
  }
}

Status AppendHistory(const Disk& disk, HistoryEntry entry) {
  if (!disk.owned() || disk.released()) return base::OkStatus();
  if (entry.time_ns == 0) entry.time_ns = Nanoseconds(system_clock::now());
  entry.manager_id = disk.owner().manager_id;
  entry.version = disk.owner().version;
  entry.epoch = disk.epoch();
  HistoryTail& tail = disk.history_tail();
  std::lock_guard appending(tail.mutex);
  return Append(disk.root(), entry, tail);
}

Status AppendHistory(const io::Dir& root, HistoryEntry entry) {
  if (entry.time_ns == 0) entry.time_ns = Nanoseconds(system_clock::now());
  HistoryTail tail;
  return Append(root, entry, tail);
}

Result<History> ReadHistory(const io::Dir& root) {
  History history;
  const auto fd = root.OpenFile(kHistoryFile, O_RDONLY | O_NONBLOCK);
  if (!fd.ok()) {
    if (fd.status().code() == Code::kNotFound) return history;
    return fd.status();
  }
  struct stat st = {};
  if (::fstat(fd->get(), &st) != 0) {
    return base::ErrnoError(errno,
                            "cannot stat " + root.path() + "/" + kHistoryFile);
  }
  if (!S_ISREG(st.st_mode)) {
    return base::FailedPreconditionError(root.path() + "/" + kHistoryFile +
                                         " is not a regular file");
  }
  BIM_ASSIGN_OR_RETURN(
      const std::string text,
      ReadTail(root, fd->get(), static_cast<uint64_t>(st.st_size)));
  for (const std::string_view line : Lines(text)) {
    auto entry = DecodeHistory(line);
    if (entry.ok()) {
      history.entries.push_back(*std::move(entry));
    } else {
      ++history.skipped;
    }
  }
  return history;
}

Result<PrunedHistory> PruneHistory(const io::Dir& root,
                                   system_clock::time_point older_than,
                                   bool dry_run) {
  const int64_t oldest = Nanoseconds(older_than);
  PrunedHistory pruned;
  if (dry_run) {
    BIM_ASSIGN_OR_RETURN(const History history, ReadHistory(root));
    for (const HistoryEntry& entry : history.entries) {
      ++(entry.time_ns < oldest ? pruned.dropped : pruned.kept);
    }
    return pruned;
  }
  const auto file = OpenLocked(root, 0);
  if (!file.ok()) {
    if (file.status().code() == Code::kNotFound) return pruned;
    return file.status();
  }
  BIM_ASSIGN_OR_RETURN(
      const std::string text,
      ReadTail(root, file->fd.get(), static_cast<uint64_t>(file->st.st_size)));
  std::string left;
  left.reserve(text.size());
  for (const std::string_view line : Lines(text)) {
    if (const auto entry = DecodeHistory(line); entry.ok()) {
      ++(entry->time_ns < oldest ? pruned.dropped : pruned.kept);
      if (entry->time_ns < oldest) continue;
    }
    left += line;
    left += '\n';
  }
  if (pruned.dropped == 0) return pruned;
  BIM_RETURN_IF_ERROR(root.ReplaceFile(kHistoryFile, left, kMode));
  return pruned;
}

}  // namespace bim::store
