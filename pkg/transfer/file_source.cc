// A file on this node, read by its extents so that holes stay holes.

#include <sys/stat.h>

#include <algorithm>
#include <vector>

#include "pkg/io/dir.h"
#include "pkg/io/sparse.h"
#include "pkg/transfer/source.h"

namespace bim::transfer {
namespace {

constexpr size_t kPiece = 512 * 1024;

class FileSource : public Source {
 public:
  FileSource(base::UniqueFd file, store::ImageRecord record)
      : file_(std::move(file)), record_(std::move(record)) {}

  Outcome Read(const Range& range, const std::string& validator,
               SourceSink& sink, std::stop_token stop) override {
    const uint64_t size = std::min(record_.stamp.size, range.end);
    SourceHead head;
    head.size = record_.stamp.size;
    head.validator = Validator();
    head.offset =
        validator == head.validator && range.begin <= size ? range.begin : 0;
    base::Status status = sink.OnHead(head);
    std::vector<std::byte> buffer(kPiece);
    for (uint64_t at = head.offset; status.ok() && at < size;) {
      auto data = io::NextData(file_.get(), at, size);
      if (!data.ok()) return Unreadable(data.status());
      if (data->begin > at) {
        status = sink.OnZeros(data->begin - at);
        at = data->begin;
      }
      while (status.ok() && at < data->end) {
        if (stop.stop_requested()) {
          return {Failure::kCancelled, base::CancelledError("stopped"),
                  std::nullopt};
        }
        const size_t want =
            static_cast<size_t>(std::min<uint64_t>(kPiece, data->end - at));
        auto count = io::PreadFull(file_.get(), buffer.data(), want, at,
                                   "the source file");
        if (!count.ok()) return Unreadable(count.status());
        if (*count == 0) {
          return Unreadable(
              base::UnavailableError("the source file became shorter"));
        }
        status = sink.OnData(std::span(buffer).first(*count));
        at += *count;
      }
    }
    if (!status.ok()) return {Failure::kPermanent, status, std::nullopt};
    // What was read is one content only if the file is still as it was.
    struct stat st = {};
    if (::fstat(file_.get(), &st) != 0 ||
        !(store::StampOf(st) == record_.stamp)) {
      return Unreadable(
          base::AbortedError("the source file changed while it was read"));
    }
    return {};
  }

 private:
  static Outcome Unreadable(base::Status status) {
    return {Failure::kTransient, std::move(status), std::nullopt};
  }

  std::string Validator() const {
    const store::FileStamp& stamp = record_.stamp;
    if (record_.sha512 != base::Digest()) {
      return "sha512:" + record_.sha512.Hex();
    }
    return "file:" + std::to_string(stamp.inode) + ":" +
           std::to_string(stamp.size) + ":" + std::to_string(stamp.mtime_ns) +
           ":" + std::to_string(stamp.ctime_ns);
  }

  const base::UniqueFd file_;
  const store::ImageRecord record_;
};

}  // namespace

std::unique_ptr<Source> MakeFileSource(base::UniqueFd file,
                                       store::ImageRecord record) {
  return std::make_unique<FileSource>(std::move(file), std::move(record));
}

}  // namespace bim::transfer
