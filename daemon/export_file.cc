#include "daemon/export_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <memory>
#include <span>
#include <vector>

#include "pkg/base/unique_fd.h"
#include "pkg/compress/decoder.h"
#include "pkg/hash/hasher.h"
#include "pkg/io/dir.h"
#include "pkg/io/sparse.h"

namespace bim::daemon {
namespace {

// A file of the caller's, not of the daemon's: no exit code but "failed".
base::Status LocalError(int error_number, const std::string& what) {
  return base::InternalError(base::ErrnoError(error_number, what).message());
}

constexpr size_t kBuffer = 256 << 10;

// Where bytes go, in order.
class Output {
 public:
  virtual ~Output() = default;
  virtual base::Status Write(std::span<const std::byte> data) = 0;
  // All bytes came and are right.
  virtual base::Status Commit(uint64_t size) = 0;
};

class StandardOutput : public Output {
 public:
  base::Status Write(std::span<const std::byte> data) override {
    while (!data.empty()) {
      const ssize_t written = write(STDOUT_FILENO, data.data(), data.size());
      if (written < 0) {
        if (errno == EINTR) continue;
        return LocalError(errno, "cannot write to standard output");
      }
      data = data.subspan(static_cast<size_t>(written));
    }
    return base::OkStatus();
  }
  base::Status Commit(uint64_t) override { return base::OkStatus(); }
};

class PartFile : public Output {
 public:
  static base::Result<std::unique_ptr<Output>> Open(
      const ExportTarget& target) {
    struct stat info;
    if (stat(target.file.c_str(), &info) == 0) {
      if (!S_ISREG(info.st_mode)) {
        return base::InvalidArgumentError(
            target.file + " is not a file: expected a file to write");
      }
      if (!target.force) return Exists(target.file);
    }
    auto part = std::unique_ptr<PartFile>(new PartFile(target));
    const std::string what = "cannot write " + part->path_;
    part->fd_ = base::UniqueFd(open(
        part->path_.c_str(), O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644));
    if (!part->fd_) return LocalError(errno, what);
    if (flock(part->fd_.get(), LOCK_EX | LOCK_NB) != 0) {
      return base::AbortedError(what + ": another export is writing it");
    }
    // Between open and lock another one may have finished: then this is its
    // file under its final name.
    struct stat opened, named;
    if (fstat(part->fd_.get(), &opened) != 0 ||
        lstat(part->path_.c_str(), &named) != 0 ||
        opened.st_ino != named.st_ino || opened.st_dev != named.st_dev) {
      return base::AbortedError(what + ": another export has just ended");
    }
    part->owned_ = true;
    // Left by one that was killed.
    if (ftruncate(part->fd_.get(), 0) != 0) return LocalError(errno, what);
    return std::unique_ptr<Output>(std::move(part));
  }
  ~PartFile() override {
    if (owned_) unlink(path_.c_str());
  }

  // Gathers pieces, so that blocks of zeros are seen whole.
  base::Status Write(std::span<const std::byte> data) override {
    buffer_.insert(buffer_.end(), data.begin(), data.end());
    if (buffer_.size() < kBuffer) return base::OkStatus();
    return Flush(buffer_.size() / io::kZeroBlock * io::kZeroBlock);
  }

  base::Status Commit(uint64_t size) override {
    BIM_RETURN_IF_ERROR(Flush(buffer_.size()));
    const std::string what = "cannot write " + path_;
    if (ftruncate(fd_.get(), static_cast<off_t>(size)) != 0 ||
        fsync(fd_.get()) != 0) {
      return LocalError(errno, what);
    }
    const unsigned flags = target_.force ? 0 : RENAME_NOREPLACE;
    if (renameat2(AT_FDCWD, path_.c_str(), AT_FDCWD, target_.file.c_str(),
                  flags) != 0) {
      if (errno == EEXIST) return Exists(target_.file);
      return LocalError(errno, "cannot rename to " + target_.file);
    }
    owned_ = false;
    return base::OkStatus();
  }

 private:
  explicit PartFile(const ExportTarget& target)
      : target_(target), path_(target.file + ".part") {}

  // Writes the first `size` bytes of the buffer.
  base::Status Flush(size_t size) {
    const std::span<const std::byte> data(buffer_.data(), size);
    io::SparseFile file{fd_.get()};
    BIM_RETURN_IF_ERROR(io::WriteSparse(file, data, written_, /*dirty=*/false)
                            .WithContext("cannot write " + path_));
    written_ += size;
    buffer_.erase(buffer_.begin(),
                  buffer_.begin() + static_cast<ptrdiff_t>(size));
    return base::OkStatus();
  }

  static base::Status Exists(const std::string& file) {
    return base::AlreadyExistsError(
        file + " exists already: give --force to replace it");
  }

  const ExportTarget target_;
  const std::string path_;
  base::UniqueFd fd_;
  std::vector<std::byte> buffer_;
  uint64_t written_ = 0;
  bool owned_ = false;  // the file at path_ is ours to remove
};

class ExportSink : public http::Sink {
 public:
  ExportSink(Output& output, base::DigestAlgorithm algorithm, uint64_t size,
             bool zstd, const std::function<void(uint64_t)>& on_progress)
      : output_(output),
        hasher_(algorithm),
        size_(size),
        on_progress_(on_progress) {
    if (zstd) {
      decoder_ = compress::MakeDecoder(compress::Encoding::kZstd, size);
    }
  }

  base::Status OnHead(const http::ResponseHead& head) override {
    if (!decoder_ && head.content_length && *head.content_length != size_) {
      return WrongSize(*head.content_length);
    }
    // A daemon that does not know the request sends the file as it is.
    if (decoder_ && head.content_type != "application/zstd") {
      return base::FailedPreconditionError(
          "the daemon sends no zstd: expected application/zstd, found " +
          head.content_type);
    }
    return base::OkStatus();
  }
  base::Status OnData(std::span<const std::byte> data) override {
    if (!decoder_) {
      BIM_RETURN_IF_ERROR(Take(data));
    } else {
      BIM_RETURN_IF_ERROR(Damaged(decoder_->Feed(data, take_)));
    }
    written_ += data.size();
    return output_.Write(data);
  }

  base::Status Finish(const base::Digest& expected) {
    if (decoder_) BIM_RETURN_IF_ERROR(Damaged(decoder_->Finish(take_)));
    if (offset_ != size_) return WrongSize(offset_);
    const base::Digest found = hasher_.Finish();
    if (found == expected) return base::OkStatus();
    return base::Status(
        base::Code::kDataLoss,
        fmt::format("the bytes that came are not the image: expected {} {}, "
                    "found {}",
                    base::DigestName(expected.algorithm()), expected.Hex(),
                    found.Hex()));
  }
  // Bytes of the output.
  uint64_t written() const { return written_; }

 private:
  // The next bytes of the image.
  base::Status Take(std::span<const std::byte> data) {
    if (data.size() > size_ - offset_) return WrongSize(offset_ + data.size());
    hasher_.Update(data);
    offset_ += data.size();
    on_progress_(offset_);
    return base::OkStatus();
  }
  static base::Status Damaged(const base::Status& status) {
    return status.ok() ? status
                       : base::Status(base::Code::kDataLoss, status.message());
  }
  base::Status WrongSize(uint64_t found) const {
    return base::Status(
        base::Code::kDataLoss,
        fmt::format("expected {} bytes of the image, found {}", size_, found));
  }

  Output& output_;
  hash::Hasher hasher_;
  const uint64_t size_;
  const std::function<void(uint64_t)>& on_progress_;
  std::unique_ptr<compress::Decoder> decoder_;  // null: the body is the image
  const compress::Decoder::Output take_ =
      [this](std::span<const std::byte> data) { return Take(data); };
  uint64_t offset_ = 0;   // in the image
  uint64_t written_ = 0;  // of the body
};

}  // namespace

base::Status Export(const http::GetRequest& request,
                    const base::Digest& expected, uint64_t size_bytes,
                    const ExportTarget& target,
                    const std::function<void(uint64_t)>& on_progress,
                    std::stop_token stop) {
  std::unique_ptr<Output> output;
  if (target.file == "-") {
    output = std::make_unique<StandardOutput>();
  } else {
    BIM_ASSIGN_OR_RETURN(output, PartFile::Open(target));
  }
  ExportSink sink(*output, expected.algorithm(), size_bytes, target.zstd,
                  on_progress);
  BIM_RETURN_IF_ERROR(http::Get(request, sink, stop).status);
  BIM_RETURN_IF_ERROR(sink.Finish(expected));
  return output->Commit(sink.written());
}

}  // namespace bim::daemon
