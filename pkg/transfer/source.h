// A source yields the bytes of one file in order, from an offset on. A new
// kind of source is a new file here; nothing else changes.
//
// Read() blocks and is meant for a worker thread; it may be called again after
// a failure. Thread-safety: one call at a time.
#pragma once

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
  kDisk,       // of the disk that is written
  kCancelled,
};

struct Outcome {
  Failure failure = Failure::kNone;
  base::Status status;  // OK exactly when kNone
  std::optional<std::chrono::seconds> retry_after;
};

struct SourceHead {
  // Of the whole file; nullopt: the source does not tell.
  std::optional<uint64_t> size;
  // Where the bytes to come begin: the offset asked for, or 0.
  uint64_t offset = 0;
  // Identifies this content of the source; empty: cannot be resumed.
  std::string validator;
  std::string content_type;  // as claimed, for messages only
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
  // Yields [offset, end) into `sink`. With an offset the content must still be
  // what `validator` says: otherwise, or when the source cannot begin there,
  // it begins at 0 and the head says so. A failure of the sink comes back as
  // kPermanent with the sink's status, for the caller to judge.
  virtual Outcome Read(uint64_t offset, const std::string& validator,
                       SourceSink& sink, std::stop_token stop) = 0;
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
