// A source yields the bytes of one file, or of a range of it, in order. A new
// kind of source is a new file here; nothing else changes.
//
// Read() blocks and is meant for a worker thread; it may be called again, also
// after a failure. Thread-safety: one call at a time; each Clone() is another
// object.
#pragma once

#include <atomic>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>

#include "pkg/base/status.h"
#include "pkg/base/unique_fd.h"
#include "pkg/store/disk.h"
#include "pkg/store/record.h"
#include "pkg/transfer/options.h"

namespace bim::transfer {

// What kind of failure: decides whether and when it is tried again.
enum class Failure {
  kNone,
  kTransient,  // of the network or the server: try again soon
  kPermanent,  // the same again would fail again
  kWrong,      // what came is wrong; another time it may be right
  kDisk,       // of the disk that is written
  kCancelled,
};

struct Outcome {
  Failure failure = Failure::kNone;
  base::Status status;  // OK exactly when kNone
  std::optional<std::chrono::seconds> retry_after;
};

// Bytes [begin, end) of a file; without an end: all to come.
struct Range {
  static constexpr uint64_t kOpen = UINT64_MAX;
  uint64_t begin = 0;
  uint64_t end = kOpen;
};

struct SourceHead {
  // Of the whole file; nullopt: the source does not tell.
  std::optional<uint64_t> size;
  // Where the bytes to come begin: the range's begin, or 0.
  uint64_t offset = 0;
  // Identifies this content of the source; empty: cannot be resumed.
  std::string validator;
  std::string content_type;  // as claimed, for messages only
  // The source can begin anywhere, on several connections.
  bool ranges = false;
  // As the source says its bytes are encoded (Content-Encoding), and how many
  // encoded ones there are; decoded by DecodingSink.
  std::string content_encoding;
};

class SourceSink {
 public:
  virtual ~SourceSink() = default;
  // Once per Read, first. A failure ends the read.
  virtual base::Status OnHead(const SourceHead& head) = 0;
  virtual base::Status OnData(std::span<const std::byte> data) = 0;
  virtual base::Status OnZeros(uint64_t count) = 0;
};

class Source {
 public:
  virtual ~Source() = default;
  // Yields the range into `sink`. Unless it begins at 0 and is open the content
  // must still be what `validator` says: otherwise, or when the source cannot
  // give that range, it begins at 0 and the head says so. A failure of the sink
  // comes back as kPermanent with the sink's status, for the caller to judge.
  virtual Outcome Read(const Range& range, const std::string& validator,
                       SourceSink& sink, std::stop_token stop) = 0;
  // Another one for the same file, with a connection of its own that is kept
  // between reads. Null: one is all there is.
  virtual std::unique_ptr<Source> Clone() { return nullptr; }
};

// Judges a URL without any I/O: scheme, form, whether file:// is allowed.
// INVALID_ARGUMENT, or PERMISSION_DENIED for a file:// that is not allowed.
base::Status CheckSourceUrl(const std::string& url, const Options& options);
// The source of a URL. `credential` names one in options.credentials_dir.
// NOT_FOUND: no such credential.
base::Result<std::unique_ptr<Source>> MakeUrlSource(
    const std::string& url, const std::string& credential,
    const Options& options);
// A ready image on a disk of this node; `file` is open for reading, `record`
// describes it.
std::unique_ptr<Source> MakeFileSource(base::UniqueFd file,
                                       store::ImageRecord record);

}  // namespace bim::transfer
