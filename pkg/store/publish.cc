#include "pkg/store/publish.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstring>
#include <memory>

#include "pkg/base/failpoint.h"
#include "pkg/base/log.h"
#include "pkg/hash/hasher.h"
#include "pkg/image/probe.h"
#include "pkg/io/dir.h"
#include "pkg/io/sparse.h"

namespace bim::store {
namespace {

using base::Code;
using base::Result;
using base::Status;
using base::UniqueFd;

class FileReader : public image::Reader {
 public:
  explicit FileReader(int fd) : fd_(fd) {}
  Result<size_t> ReadAt(uint64_t offset, std::span<std::byte> out) override {
    return io::PreadFull(fd_, out.data(), out.size(), offset, "the image");
  }

 private:
  int fd_;
};

int64_t NowNs() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

Result<struct stat> StatFd(int fd) {
  struct stat st = {};
  if (::fstat(fd, &st) != 0) return base::ErrnoError(errno, "cannot stat");
  return st;
}

Status ProbeInto(int fd, ImageRecord& record) {
  BIM_ASSIGN_OR_RETURN(struct stat st, StatFd(fd));
  FileReader reader(fd);
  BIM_ASSIGN_OR_RETURN(image::ImageInfo info,
                       image::Probe(reader, static_cast<uint64_t>(st.st_size)));
  record.format = image::FormatName(info.format);
  record.virtual_size = info.virtual_size;
  return base::OkStatus();
}

Status WriteConfig(const Disk& disk, const ImageRecord& record,
                   uint64_t real_size, const std::string& expected_checksum) {
  LonghornConfig config;
  config.file_path = disk.path() + "/" + DataFile(record.key);
  config.uuid = record.key.uuid;
  config.size = record.stamp.size;
  config.virtual_size = record.virtual_size;
  config.real_size = real_size;
  config.expected_checksum = expected_checksum;
  config.current_checksum = record.sha512.Hex();
  config.modification_time = FormatModificationTime(record.stamp.mtime_ns);
  return disk.root().ReplaceFile(ConfigFile(record.key), EncodeConfig(config));
}

// Steps behind the rename: the ready file gets its final record and cfg.
Status FinishPublish(const Disk& disk, ImageRecord& record,
                     const std::string& expected_checksum) {
  const io::Dir& root = disk.root();
  BIM_ASSIGN_OR_RETURN(io::Dir dir, root.OpenDir(ImageDir(record.key)));
  BIM_RETURN_IF_ERROR(dir.Sync());
  BIM_FAILPOINT("store.commit.dir_synced");
  BIM_ASSIGN_OR_RETURN(struct stat st, root.Stat(DataFile(record.key)));
  // What was proven, and nothing else.
  if (!Matches(record.stamp, StampOf(st))) {
    return base::AbortedError(disk.path() + "/" + DataFile(record.key) +
                              " is not the file that was proven any more");
  }
  record.stamp = StampOf(st);
  BIM_RETURN_IF_ERROR(WriteConfig(disk, record,
                                  static_cast<uint64_t>(st.st_blocks) * 512,
                                  expected_checksum));
  BIM_FAILPOINT("store.commit.config_written");
  BIM_RETURN_IF_ERROR(
      root.ReplaceFile(RecordFile(record.key), EncodeRecord(record)));
  BIM_FAILPOINT("store.commit.recorded");
  return base::OkStatus();
}

// The processes that have the file open, as far as they can be seen.
std::string Openers(const struct stat& file) {
  std::string names;
  int found = 0;
  // Our own descriptor is one of the two that the caller found too many.
  int own = 1;
  const auto read_link = [](const std::string& path) {
    char buffer[4096];
    const ssize_t n = ::readlink(path.c_str(), buffer, sizeof(buffer));
    return std::string(buffer, n > 0 ? static_cast<size_t>(n) : 0);
  };
  std::unique_ptr<DIR, int (*)(DIR*)> proc(::opendir("/proc"), &::closedir);
  if (!proc) return names;
  while (const struct dirent* process = ::readdir(proc.get())) {
    int pid = 0;
    const std::string_view text = process->d_name;
    const auto parsed =
        std::from_chars(text.data(), text.data() + text.size(), pid);
    if (parsed.ptr != text.data() + text.size()) continue;
    const std::string fds = "/proc/" + std::string(text) + "/fd";
    std::unique_ptr<DIR, int (*)(DIR*)> dir(::opendir(fds.c_str()),
                                            &::closedir);
    if (!dir) continue;
    while (const struct dirent* entry = ::readdir(dir.get())) {
      struct stat st = {};
      const std::string path = fds + "/" + entry->d_name;
      if (::stat(path.c_str(), &st) != 0 || st.st_ino != file.st_ino ||
          st.st_dev != file.st_dev) {
        continue;
      }
      if (pid == ::getpid() && own-- > 0) continue;
      const std::string exe = read_link("/proc/" + std::string(text) + "/exe");
      names += (names.empty() ? "" : ", ") + std::string("process ") +
               std::string(text) + " (" + exe.substr(exe.rfind('/') + 1) + ")";
      if (++found >= 5) return names + ", ...";
      break;
    }
  }
  return names;
}

}  // namespace

Status CheckPlace(const Disk& disk, const ImageKey& key) {
  const io::Dir& root = disk.root();
  if (const auto owner = ReadOwnerOfRecord(root, key);
      owner.ok() && *owner != key) {
    return base::AlreadyExistsError("the place " + disk.path() + "/" +
                                    DataFile(key) + " is that of image '" +
                                    owner->name + "' with uuid '" +
                                    owner->uuid + "'");
  }
  const auto config = ReadConfig(root, key);
  if (config.ok() && !config->uuid.empty() && config->uuid != key.uuid) {
    return base::AlreadyExistsError(
        "the place " + disk.path() + "/" + DataFile(key) +
        " is that of another image, with uuid '" + config->uuid + "'");
  }
  return base::OkStatus();
}

Status MakeImageDir(const Disk& disk, const ImageKey& key) {
  const io::Dir& root = disk.root();
  BIM_RETURN_IF_ERROR(root.MakeDir(ImageDir(key), 0755));
  const bool own_dir = key.place == Place::kImages;
  BIM_RETURN_IF_ERROR(CheckPlace(disk, key));
  BIM_ASSIGN_OR_RETURN(io::Dir parent,
                       root.OpenDir(own_dir ? kImagesDir : "."));
  BIM_RETURN_IF_ERROR(parent.Sync());
  BIM_FAILPOINT_ERROR("store.ingest.dir_made");
  return base::OkStatus();
}

Result<ImageRecord> Publish(const Disk& disk, const ImageKey& key, int fd,
                            ImageRecord record, mode_t file_mode,
                            const std::string& expected_checksum) {
  const io::Dir& root = disk.root();
  record.key = key;
  record.chunk_count = static_cast<uint32_t>(record.chunks.size());
  BIM_RETURN_IF_ERROR(ProbeInto(fd, record));
  BIM_RETURN_IF_ERROR(disk.CheckOwner());
  if (::fchmod(fd, file_mode) != 0) {
    return base::ErrnoError(errno, "cannot set the mode of the image");
  }
  BIM_ASSIGN_OR_RETURN(struct stat st, StatFd(fd));
  BIM_ASSIGN_OR_RETURN(struct stat there, root.Stat(TempFile(key)));
  if (there.st_ino != st.st_ino || there.st_dev != st.st_dev) {
    return base::AbortedError(disk.path() + "/" + TempFile(key) +
                              " is not the file that was written any more");
  }
  record.stamp = StampOf(st);
  // Sealed: the rename to come changes ctime. What Inspect finds with such a
  // record was complete, durable and proven.
  record.stamp.ctime_ns = 0;
  record.verified_ns = NowNs();
  BIM_FAILPOINT_ERROR("store.commit.before_seal");
  BIM_RETURN_IF_ERROR(root.ReplaceFile(RecordFile(key), EncodeRecord(record)));
  BIM_FAILPOINT("store.commit.sealed");
  BIM_RETURN_IF_ERROR(root.Rename(TempFile(key), DataFile(key)));
  BIM_FAILPOINT("store.commit.renamed");
  BIM_RETURN_IF_ERROR(FinishPublish(disk, record, expected_checksum));
  return record;
}

Status WriteRecord(const Disk& disk, const ImageRecord& record,
                   const std::string& expected_checksum) {
  BIM_ASSIGN_OR_RETURN(struct stat st, disk.root().Stat(DataFile(record.key)));
  BIM_RETURN_IF_ERROR(WriteConfig(disk, record,
                                  static_cast<uint64_t>(st.st_blocks) * 512,
                                  expected_checksum));
  return disk.root().ReplaceFile(RecordFile(record.key), EncodeRecord(record));
}

Result<Found> Inspect(const Disk& disk, const ImageKey& key, mode_t file_mode,
                      const std::string& expected_checksum) {
  const io::Dir& root = disk.root();
  Found found;
  auto record = ReadRecord(root, key, false);
  if (!record.ok() && record.status().code() == Code::kFailedPrecondition) {
    return record.status();  // of a newer version: not ours to touch
  }
  // Sealed, and the crash came before the rename?
  if (record.ok() && record->stamp.ctime_ns == 0) {
    const auto temp = root.OpenFile(TempFile(key), O_RDONLY | O_NONBLOCK);
    struct stat temp_st = {};
    if (temp.ok() && ::fstat(temp->get(), &temp_st) == 0 &&
        Matches(record->stamp, StampOf(temp_st))) {
      BIM_ASSIGN_OR_RETURN(ImageRecord whole, ReadRecord(root, key, true));
      BIM_ASSIGN_OR_RETURN(found.record,
                           Publish(disk, key, temp->get(), std::move(whole),
                                   file_mode, expected_checksum));
      found.record.chunks.clear();
      found.kind = Found::Kind::kReady;
      found.stamp = found.record.stamp;
      return found;
    }
  }
  auto st = root.Stat(DataFile(key));
  if (!st.ok()) {
    if (st.status().code() != Code::kNotFound) return st.status();
    found.partial = HasJournal(root, key);
    return found;
  }
  if (!S_ISREG(st->st_mode)) {
    return base::FailedPreconditionError(disk.path() + "/" + DataFile(key) +
                                         " is not a regular file");
  }
  found.stamp = StampOf(*st);
  if (record.ok()) {
    found.record = *record;
    if (!Matches(record->stamp, found.stamp)) {
      found.kind = Found::Kind::kChanged;
      return found;
    }
    if (record->stamp.ctime_ns == 0) {
      // Renamed, and the crash came before the final record.
      auto whole = ReadRecord(root, key, true);
      if (whole.ok()) {
        BIM_RETURN_IF_ERROR(FinishPublish(disk, *whole, expected_checksum));
        found.record = *std::move(whole);
        found.record.chunks.clear();
      }
    }
    found.kind = Found::Kind::kReady;
    return found;
  }
  // No record of ours: Longhorn's cfg vouches for a file of exactly its mtime.
  const auto config = ReadConfig(root, key);
  if (config.ok() && config->uuid == key.uuid &&
      config->size == found.stamp.size &&
      config->modification_time ==
          FormatModificationTime(found.stamp.mtime_ns)) {
    auto digest = base::Digest::FromHex(base::DigestAlgorithm::kSha512,
                                        config->current_checksum);
    if (digest.ok()) {
      found.record.key = key;
      found.record.stamp = found.stamp;
      found.record.sha512 = *digest;
      found.record.origin = "reused file";
      found.by_config = true;
      BIM_ASSIGN_OR_RETURN(UniqueFd fd,
                           root.OpenFile(DataFile(key), O_RDONLY | O_NONBLOCK));
      BIM_RETURN_IF_ERROR(ProbeInto(fd.get(), found.record));
      found.kind = Found::Kind::kReady;
      return found;
    }
  }
  found.kind = Found::Kind::kUnproven;
  return found;
}

// Reads the file at `path`, which is that of `key`, once.
static Result<ImageRecord> ScanPath(const Disk& disk, const ImageKey& key,
                                    const std::string& path, bool want_sha256,
                                    std::stop_token stop,
                                    const ScanProgress& progress) {
  BIM_ASSIGN_OR_RETURN(UniqueFd fd,
                       disk.root().OpenFile(path, O_RDONLY | O_NONBLOCK));
  BIM_ASSIGN_OR_RETURN(struct stat before, StatFd(fd.get()));
  if (!S_ISREG(before.st_mode)) {
    return base::FailedPreconditionError(disk.path() + "/" + path +
                                         " is not a regular file");
  }
  ImageRecord record;
  record.key = key;
  record.stamp = StampOf(before);
  const uint64_t size = record.stamp.size;
  record.chunk_size = ChunkSizeFor(size);
  record.chunks.resize(ChunkCount(size, record.chunk_size));
  hash::Hasher sha512(base::DigestAlgorithm::kSha512);
  std::optional<hash::Hasher> sha256;
  if (want_sha256) sha256.emplace(base::DigestAlgorithm::kSha256);

  std::vector<std::byte> buffer(
      static_cast<size_t>(std::min<uint64_t>(record.chunk_size, 1 << 20)));
  io::Extent data;
  uint64_t read = 0;
  for (size_t i = 0; i < record.chunks.size(); ++i) {
    const uint64_t begin = i * record.chunk_size;
    const uint64_t end = std::min(size, begin + record.chunk_size);
    if (data.end <= begin && data.begin < size) {
      BIM_ASSIGN_OR_RETURN(data, io::NextData(fd.get(), begin, size));
    }
    Chunk& chunk = record.chunks[i];
    chunk.zero = true;
    if (data.begin >= end) {  // a hole
      sha512.UpdateZeros(end - begin);
      if (sha256) sha256->UpdateZeros(end - begin);
    } else {
      hash::Hasher digest(base::DigestAlgorithm::kSha256);
      for (uint64_t at = begin; at < end;) {
        const size_t want =
            static_cast<size_t>(std::min<uint64_t>(buffer.size(), end - at));
        BIM_FAILPOINT_ERROR("store.scan.read");
        BIM_ASSIGN_OR_RETURN(size_t count,
                             io::PreadFull(fd.get(), buffer.data(), want, at,
                                           disk.path() + "/" + path));
        if (count != want) {
          return base::AbortedError(
              "the file became shorter while it was "
              "read");
        }
        const auto piece = std::span<const std::byte>(buffer).first(count);
        chunk.zero = chunk.zero && io::IsZero(piece);
        sha512.Update(piece);
        if (sha256) sha256->Update(piece);
        digest.Update(piece);
        at += count;
        read += count;
        if (stop.stop_requested()) return base::CancelledError("stopped");
      }
      if (!chunk.zero) {
        const base::Digest value = digest.Finish();
        std::copy(value.bytes().begin(), value.bytes().end(),
                  chunk.sha256.begin());
      }
    }
    if (stop.stop_requested()) return base::CancelledError("stopped");
    if (progress) progress(end, read);
  }
  BIM_ASSIGN_OR_RETURN(struct stat after, disk.root().Stat(path));
  if (!(StampOf(after) == record.stamp)) {
    return base::AbortedError("the file changed while it was read");
  }
  record.sha512 = sha512.Finish();
  if (sha256) record.sha256 = sha256->Finish();
  record.chunk_count = static_cast<uint32_t>(record.chunks.size());
  record.verified_ns = NowNs();
  BIM_RETURN_IF_ERROR(ProbeInto(fd.get(), record));
  return record;
}

Result<ImageRecord> Scan(const Disk& disk, const ImageKey& key,
                         bool want_sha256, std::stop_token stop,
                         const ScanProgress& progress) {
  return ScanPath(disk, key, DataFile(key), want_sha256, stop, progress);
}

Result<ImageRecord> AdoptTemp(const Disk& disk, const ImageKey& key,
                              const AdoptOptions& options, std::stop_token stop,
                              const std::function<void(uint64_t)>& done) {
  const io::Dir& root = disk.root();
  const auto drop = [&](Status status) -> Status {
    if (status.code() == Code::kFailedPrecondition ||
        status.code() == Code::kDataLoss) {
      (void)RemovePartial(disk, key);
    }
    return status;
  };
  BIM_ASSIGN_OR_RETURN(const UniqueFd fd,
                       root.OpenFile(TempFile(key), O_RDWR | O_NONBLOCK));
  BIM_ASSIGN_OR_RETURN(const struct stat st, StatFd(fd.get()));
  if (st.st_size == 0 || st.st_size % 512 != 0) {
    return drop(
        base::FailedPreconditionError("size " + std::to_string(st.st_size) +
                                      " is not a multiple of 512 above 0"));
  }
  if (::fsync(fd.get()) != 0) {
    return base::ErrnoError(errno,
                            "cannot sync " + disk.path() + "/" + TempFile(key));
  }
  auto record = ScanPath(disk, key, TempFile(key), false, stop,
                         [&](uint64_t at, uint64_t) { done(at); });
  if (!record.ok()) return drop(record.status());
  if (options.expect_sha512 && *options.expect_sha512 != record->sha512) {
    return drop(base::FailedPreconditionError(
        "wrong checksum: expected SHA-512 " + options.expect_sha512->Hex() +
        ", found " + record->sha512.Hex()));
  }
  record->origin = options.origin;
  auto published = Publish(disk, key, fd.get(), *std::move(record),
                           options.file_mode, options.shown_checksum);
  if (!published.ok()) return drop(published.status());
  published->chunks.clear();
  return published;
}

Status MoveImage(const Disk& disk, const ImageKey& from, const ImageKey& to,
                 const std::string& expected_checksum) {
  const io::Dir& root = disk.root();
  BIM_ASSIGN_OR_RETURN(const struct stat st, root.Stat(DataFile(from)));
  if (!S_ISREG(st.st_mode)) {
    return base::FailedPreconditionError(disk.path() + "/" + DataFile(from) +
                                         " is not a regular file");
  }
  BIM_RETURN_IF_ERROR(MakeImageDir(disk, to));
  if (root.Stat(DataFile(to)).ok()) {
    return base::AlreadyExistsError("a file lies at " + disk.path() + "/" +
                                    DataFile(to) + " already");
  }
  BIM_RETURN_IF_ERROR(RemovePartial(disk, to));
  BIM_RETURN_IF_ERROR(disk.CheckOwner());
  auto record = ReadRecord(root, from, true);
  const bool proven = record.ok() && Matches(record->stamp, StampOf(st));
  if (proven) {
    // As in a commit: what Inspect finds with a sealed record was proven.
    record->key = to;
    record->stamp.ctime_ns = 0;
    BIM_RETURN_IF_ERROR(
        root.ReplaceFile(RecordFile(to), EncodeRecord(*record)));
  } else if (auto config = ReadConfig(root, from); config.ok()) {
    // Longhorn's cfg vouches for it by its mtime, which a rename keeps.
    config->file_path = disk.path() + "/" + DataFile(to);
    BIM_RETURN_IF_ERROR(
        root.ReplaceFile(ConfigFile(to), EncodeConfig(*config)));
  }
  BIM_RETURN_IF_ERROR(root.Rename(DataFile(from), DataFile(to)));
  if (proven) {
    BIM_RETURN_IF_ERROR(FinishPublish(disk, *record, expected_checksum));
  } else {
    BIM_ASSIGN_OR_RETURN(io::Dir dir, root.OpenDir(ImageDir(to)));
    BIM_RETURN_IF_ERROR(dir.Sync());
  }
  // Nothing of it is needed there any more.
  for (const std::string& left : {RecordFile(from), ConfigFile(from)}) {
    BIM_RETURN_IF_ERROR(root.RemoveFile(left));
  }
  BIM_ASSIGN_OR_RETURN(io::Dir source, root.OpenDir(ImageDir(from)));
  return source.Sync();
}

Result<Unfinished> CountUnfinished(const io::Dir& root) {
  Unfinished unfinished;
  const auto images = root.OpenDir(kImagesDir);
  if (!images.ok()) {
    if (images.status().code() == Code::kNotFound) return unfinished;
    return images.status();
  }
  BIM_RETURN_IF_ERROR(images->List([&](std::string_view name, unsigned char) {
    // Where the name ends does not matter here: the directory is the same.
    const size_t dash = name.find('-');
    if (dash == std::string_view::npos) return true;
    const ImageKey key{std::string(name.substr(0, dash)),
                       std::string(name.substr(dash + 1))};
    if (!root.Stat(TempFile(key)).ok()) return true;
    ++(HasJournal(root, key) ? unfinished.resumable : unfinished.others);
    return true;
  }));
  return unfinished;
}

Status RemovePartial(const Disk& disk, const ImageKey& key) {
  const io::Dir& root = disk.root();
  BIM_RETURN_IF_ERROR(root.RemoveFile(TempFile(key)));
  // A record belongs to a ready file and stays, as does one of a newer format.
  const auto record = ReadRecord(root, key, false);
  if (record.ok() ? root.Stat(DataFile(key)).ok()
                  : record.status().code() == Code::kFailedPrecondition) {
    return base::OkStatus();
  }
  return root.RemoveFile(RecordFile(key));
}

ImageKey StagingKey(const ImageKey& key) {
  return {key.name, key.uuid + ".source", Place::kDataSource};
}

Status RemoveDataSourceRemains(const Disk& disk, const ImageKey& key) {
  if (!disk.owned()) return RemoveImage(disk, StagingKey(key), true);
  const ImageKey source{key.name, key.uuid, Place::kDataSource};
  const io::Dir& root = disk.root();
  if (!root.Stat(kDataSourceDir).ok()) return base::OkStatus();
  // Held until all is gone, also by one that begins meanwhile.
  BIM_ASSIGN_OR_RETURN(
      const UniqueFd lock,
      root.OpenFile(DataSourceLock(source), O_RDONLY | O_CREAT, 0644));
  if (::flock(lock.get(), LOCK_EX | LOCK_NB) != 0) return base::OkStatus();
  BIM_ASSIGN_OR_RETURN(const struct stat held, StatFd(lock.get()));
  const auto named = root.Stat(DataSourceLock(source));
  if (!named.ok() || named->st_ino != held.st_ino) return base::OkStatus();
  BIM_RETURN_IF_ERROR(RemovePartial(disk, source));
  BIM_RETURN_IF_ERROR(RemoveImage(disk, StagingKey(key), true));
  return root.RemoveFile(DataSourceLock(source));
}

// Holds the ready file for as long as the descriptor lives, so that nobody can
// open it; empty when there is no ready file.
static Result<UniqueFd> HoldUnused(const Disk& disk, const ImageKey& key) {
  auto fd = disk.root().OpenFile(DataFile(key), O_RDONLY | O_NONBLOCK);
  if (!fd.ok()) {
    if (fd.status().code() == Code::kNotFound) return UniqueFd();
    return fd.status();
  }
  // A write lease is granted only while nobody else has the file open, in
  // whatever namespace; while we hold it, opens wait.
  if (::fcntl(fd->get(), F_SETLEASE, F_WRLCK) == 0) return fd;
  // Other errors: a file system without leases; /proc must do.
  const bool busy = errno == EAGAIN || errno == EBUSY;
  BIM_ASSIGN_OR_RETURN(struct stat st, StatFd(fd->get()));
  const std::string openers = Openers(st);
  if (!busy && openers.empty()) return fd;
  return base::FailedPreconditionError(
      "image '" + key.name + "' is in use: " + disk.path() + "/" +
      DataFile(key) + " is open in " +
      (openers.empty() ? "another process" : openers) +
      "; force removes it all the same");
}

Status CheckUnused(const Disk& disk, const ImageKey& key) {
  return HoldUnused(disk, key).status();
}

Status KeepDamaged(const Disk& disk, const ImageKey& key) {
  const io::Dir& root = disk.root();
  BIM_RETURN_IF_ERROR(root.MakeDir(kDamagedDir, 0700));
  BIM_RETURN_IF_ERROR(root.Link(DataFile(key), DamagedFile(key)));
  BIM_FAILPOINT("store.repair.kept");
  BIM_ASSIGN_OR_RETURN(io::Dir kept, root.OpenDir(kDamagedDir));
  BIM_RETURN_IF_ERROR(kept.Sync());
  BIM_ASSIGN_OR_RETURN(io::Dir own, root.OpenDir(kBimDir));
  return own.Sync();
}

Status RemoveImage(const Disk& disk, const ImageKey& key, bool force) {
  const io::Dir& root = disk.root();
  UniqueFd held;
  if (!force) {
    BIM_ASSIGN_OR_RETURN(held, HoldUnused(disk, key));
  }
  const bool own_dir = key.place == Place::kImages;
  if (own_dir) BIM_RETURN_IF_ERROR(root.RemoveFile(DamagedFile(key)));
  if (!root.Stat(ImageDir(key)).ok()) return base::OkStatus();
  for (const std::string& path :
       {DataFile(key), TempFile(key), ConfigFile(key), RecordFile(key),
        ConfigFile(key) + ".new", RecordFile(key) + ".new"}) {
    BIM_RETURN_IF_ERROR(root.RemoveFile(path));
    BIM_FAILPOINT("store.remove.file");
  }
  if (!own_dir) {
    BIM_ASSIGN_OR_RETURN(io::Dir sources, root.OpenDir(kDataSourceDir));
    return sources.Sync();
  }
  if (Status removed = root.RemoveDir(ImageDir(key)); !removed.ok()) {
    BIM_LOG_WARN("{}: left in place, it holds other files", removed.message());
  }
  BIM_ASSIGN_OR_RETURN(io::Dir images, root.OpenDir(kImagesDir));
  return images.Sync();
}

}  // namespace bim::store
