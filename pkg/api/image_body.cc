#include "pkg/api/image_body.h"

#include <sys/stat.h>

#include <algorithm>
#include <cerrno>
#include <span>
#include <string>
#include <utility>
#include <vector>

#include "pkg/io/dir.h"
#include "pkg/io/sparse.h"

namespace bim::api {
namespace {

constexpr size_t kReadBytes = 256 << 10;
// A piece of a compressed body is made of at most so much of the file: a hole
// of a TiB gives few bytes, and a client that waits must see them.
constexpr uint64_t kMaxPerPiece = 64 << 20;

base::Status TooShort() {
  return base::DataLossError("the image's file became shorter");
}

// A whole file compressed; holes are not read.
class EncodedBody final : public http::BodyMaker {
 public:
  EncodedBody(base::UniqueFd fd, const store::FileStamp& stamp,
              std::unique_ptr<compress::Encoder> encoder)
      : fd_(std::move(fd)),
        stamp_(stamp),
        size_(stamp.size),
        encoder_(std::move(encoder)),
        buffer_(kReadBytes) {}

  base::Result<std::string> Next() override {
    std::string out;
    const uint64_t pause = at_ + kMaxPerPiece;
    while (!finished_ && out.size() < kReadBytes &&
           (out.empty() || at_ < pause)) {
      BIM_RETURN_IF_ERROR(Step(out));
    }
    // Behind the end of a file that was cut there seem to be holes.
    BIM_RETURN_IF_ERROR(CheckImageFile(fd_.get(), stamp_));
    return out;
  }

 private:
  base::Status Step(std::string& out) {
    if (at_ == size_) {
      finished_ = true;
      return encoder_->Finish(out);
    }
    if (at_ >= data_.end) {
      BIM_ASSIGN_OR_RETURN(data_, io::NextData(fd_.get(), at_, size_));
    }
    const bool hole = at_ < data_.begin;
    const uint64_t left = (hole ? data_.begin : data_.end) - at_;
    const std::span<std::byte> piece(
        buffer_.data(),
        static_cast<size_t>(std::min<uint64_t>(left, buffer_.size())));
    if (hole) {
      std::fill(piece.begin(), piece.end(), std::byte{0});
    } else {
      BIM_RETURN_IF_ERROR(
          ReadImageFile(fd_.get(), piece.data(), piece.size(), at_));
    }
    at_ += piece.size();
    return encoder_->Feed(piece, out);
  }

  const base::UniqueFd fd_;
  const store::FileStamp stamp_;
  const uint64_t size_;
  const std::unique_ptr<compress::Encoder> encoder_;
  std::vector<std::byte> buffer_;
  io::Extent data_;  // the current or next data
  uint64_t at_ = 0;
  bool finished_ = false;
};

}  // namespace

base::Status CheckImageFile(int fd, const store::FileStamp& stamp) {
  struct stat info;
  if (fstat(fd, &info) != 0) {
    return base::ErrnoError(errno, "cannot look at the image's file");
  }
  const store::FileStamp now = store::StampOf(info);
  if (now.size == stamp.size && now.mtime_ns == stamp.mtime_ns) {
    return base::OkStatus();
  }
  return base::FailedPreconditionError(
      "the image's file was modified and is not ready");
}

base::Status ReadImageFile(int fd, void* buffer, size_t size, uint64_t offset) {
  BIM_ASSIGN_OR_RETURN(
      const size_t read,
      io::PreadFull(fd, static_cast<char*>(buffer), size,
                    static_cast<off_t>(offset), "cannot read the image"));
  return read == size ? base::OkStatus() : TooShort();
}

void SendImageFile(base::UniqueFd fd, const store::FileStamp& stamp,
                   http::Response& response) {
  // The descriptor stays the response's.
  response.check = [file = fd.get(), stamp] {
    return CheckImageFile(file, stamp);
  };
  response.file = std::move(fd);
  response.file_size = stamp.size;
}

std::unique_ptr<http::BodyMaker> MakeEncodedBody(
    base::UniqueFd fd, const store::FileStamp& stamp,
    std::unique_ptr<compress::Encoder> encoder) {
  return std::make_unique<EncodedBody>(std::move(fd), stamp,
                                       std::move(encoder));
}

}  // namespace bim::api
