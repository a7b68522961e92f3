#include "pkg/store/parked.h"

#include <fcntl.h>
#include <sys/stat.h>

#include <algorithm>
#include <ctime>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "pkg/base/log.h"
#include "pkg/io/dir.h"
#include "pkg/store/record.h"

namespace bim::store {
namespace {

using base::Code;
using base::Result;
using base::Status;

constexpr std::string_view kDataSuffix = ".tmp";
constexpr std::string_view kJournalSuffix = ".bim";

std::string ParkedFile(const ImageKey& key, std::string_view suffix) {
  return std::string(kParkedDir) + "/" + DirName(key) + std::string(suffix);
}

Status RemoveParked(const io::Dir& root, const ImageKey& key) {
  BIM_RETURN_IF_ERROR(root.RemoveFile(ParkedFile(key, kJournalSuffix)));
  return root.RemoveFile(ParkedFile(key, kDataSuffix));
}

}  // namespace

Status Park(const Disk& disk, const ImageKey& key) {
  const io::Dir& root = disk.root();
  const auto journal = ReadJournal(root, key);
  if (!journal.ok() ||
      std::none_of(journal->chunks.begin(), journal->chunks.end(),
                   [](const auto& chunk) { return chunk.has_value(); })) {
    return base::OkStatus();
  }
  const auto temp = root.OpenFile(TempFile(key), O_RDONLY | O_NONBLOCK);
  struct stat st = {};
  if (!temp.ok() || ::fstat(temp->get(), &st) != 0 ||
      st.st_ino != journal->header.inode) {
    return base::OkStatus();
  }
  BIM_RETURN_IF_ERROR(root.MakeDir(kParkedDir, 0700));
  BIM_RETURN_IF_ERROR(RemoveParked(root, key));
  // From now on its age counts.
  if (::futimens(temp->get(), nullptr) != 0) {
    return base::ErrnoError(
        errno, "cannot set the time of " + disk.path() + "/" + TempFile(key));
  }
  // The journal last: data without one is worthless, and swept.
  BIM_RETURN_IF_ERROR(root.Rename(TempFile(key), ParkedFile(key, kDataSuffix)));
  return root.Rename(RecordFile(key), ParkedFile(key, kJournalSuffix));
}

Result<bool> Unpark(const Disk& disk, const ImageKey& key, uint64_t size) {
  const io::Dir& root = disk.root();
  const std::string journal_file = ParkedFile(key, kJournalSuffix);
  if (!root.Stat(journal_file).ok()) return false;
  if (root.Stat(TempFile(key)).ok() || root.Stat(RecordFile(key)).ok() ||
      root.Stat(DataFile(key)).ok()) {
    return false;
  }
  BIM_RETURN_IF_ERROR(root.MakeDir(ImageDir(key), 0755));
  // The journal first: it is of no use where its data is not, and harmless.
  BIM_RETURN_IF_ERROR(root.Rename(journal_file, RecordFile(key)));
  const auto journal = ReadJournal(root, key);
  if (!journal.ok() || (size != 0 && journal->header.size != size)) {
    BIM_RETURN_IF_ERROR(root.RemoveFile(RecordFile(key)));
    BIM_RETURN_IF_ERROR(RemoveParked(root, key));
    return false;
  }
  Status moved = root.Rename(ParkedFile(key, kDataSuffix), TempFile(key));
  if (!moved.ok()) {
    BIM_RETURN_IF_ERROR(root.RemoveFile(RecordFile(key)));
    if (moved.code() == Code::kNotFound) return false;
    return moved;
  }
  return true;
}

Status SweepParked(const Disk& disk, std::chrono::seconds age) {
  const io::Dir& root = disk.root();
  const auto dir = root.OpenDir(kParkedDir);
  if (!dir.ok()) {
    return dir.status().code() == Code::kNotFound ? base::OkStatus()
                                                  : dir.status();
  }
  std::vector<std::string> names;
  BIM_RETURN_IF_ERROR(dir->List([&](std::string_view name, unsigned char) {
    if (name.ends_with(kDataSuffix)) names.emplace_back(name);
    return true;
  }));
  std::vector<std::pair<int64_t, std::string>> parked;
  for (std::string& name : names) {
    const auto st = dir->Stat(name);
    if (st.ok()) parked.emplace_back(st->st_mtim.tv_sec, std::move(name));
  }
  std::sort(parked.rbegin(), parked.rend());  // the youngest first
  const int64_t oldest = std::time(nullptr) - age.count();
  for (size_t i = 0; i < parked.size(); ++i) {
    const auto& [seconds, name] = parked[i];
    if (i < kMaxParked && seconds > oldest) continue;
    const std::string stem = name.substr(0, name.size() - kDataSuffix.size());
    BIM_LOG_INFO(
        "{}/{}: bytes of an interrupted image, kept for a retry that "
        "did not come: deleted",
        dir->path(), name);
    BIM_RETURN_IF_ERROR(dir->RemoveFile(stem + std::string(kJournalSuffix)));
    BIM_RETURN_IF_ERROR(dir->RemoveFile(name));
  }
  return base::OkStatus();
}

}  // namespace bim::store
