// An ingest is the only way bytes reach an image file. What it writes is
// invisible until Commit, and a file that does not have every byte can never
// be committed, whoever stops when.
//
// Bytes are given in order. They pass through once, in blocks of 1 MiB, each
// handed to two threads: one writes it (zeros as holes) and hashes it by
// chunks, one hashes the whole; a third makes written data durable now and
// then and journals the digests of the chunks that are, so that a later ingest
// of the same content continues there (Restore). At most 6 blocks are in
// flight: memory does not grow with the file, Append waits (backpressure).
//
// All functions block. Thread-safety: one caller at a time; stored_bytes()
// and total_bytes() from any thread. The destructor suspends: what is complete
// stays resumable.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>

#include "pkg/base/digest.h"
#include "pkg/base/status.h"
#include "pkg/store/disk.h"
#include "pkg/store/layout.h"
#include "pkg/store/record.h"

namespace bim::store {

struct IngestOptions {
  std::optional<base::Digest> expect_sha512;
  std::optional<base::Digest> expect_sha256;
  // A ready copy's record with its chunks: each chunk is compared as it
  // arrives, and the whole is then known to have the record's digests.
  std::shared_ptr<const ImageRecord> reference;
  mode_t file_mode = 0644;
  std::string origin;  // for the record, "download"
  // The expected checksum that backing.cfg shows; may be empty.
  std::string shown_checksum;
};

class Ingest {
 public:
  // Makes the image's directory and looks at what an earlier ingest left.
  // ALREADY_EXISTS when the directory is that of another image.
  static base::Result<std::unique_ptr<Ingest>> Open(
      std::shared_ptr<const Disk> disk, ImageKey key, IngestOptions options);
  virtual ~Ingest() = default;

  // What an earlier ingest left and its journal vouches for: the validator of
  // the content it was part of, empty when there is nothing to resume.
  virtual const std::string& partial_validator() const = 0;
  virtual uint64_t partial_size() const = 0;  // of the whole file

  // Reads those bytes again, checks them chunk by chunk and continues behind
  // the last good one: position() tells where. Bytes that differ from the
  // journal are dropped. CANCELLED when stopped; nothing is lost then.
  virtual base::Status Restore(std::stop_token stop) = 0;
  // Starts from nothing; drops partial bytes. Without a size, or with an empty
  // validator, the bytes cannot be resumed by another process.
  // INVALID_ARGUMENT: size 0 or no multiple of 512.
  virtual base::Status Begin(std::optional<uint64_t> size,
                             std::string validator) = 0;
  // True after Begin, or a Restore that found bytes.
  virtual bool begun() const = 0;
  // Of the content in work, as given to Begin or found by Restore.
  virtual const std::string& validator() const = 0;

  // The next bytes of the file. OUT_OF_RANGE beyond its size;
  // RESOURCE_EXHAUSTED: disk full; DATA_LOSS: differs from the reference;
  // other failures are those of the disk.
  virtual base::Status Append(std::span<const std::byte> data,
                              std::stop_token stop) = 0;
  virtual base::Status AppendZeros(uint64_t count, std::stop_token stop) = 0;
  // How many bytes were given (or restored): where the next ones belong.
  virtual uint64_t position() const = 0;
  // How many are on the disk. From any thread.
  virtual uint64_t stored_bytes() const = 0;
  // The size of the whole file; 0 while it is not known. From any thread.
  virtual uint64_t total_bytes() const = 0;

  // All bytes were given: makes them durable, checks size, digests and the
  // format's safety rules, and publishes the file. FAILED_PRECONDITION and
  // DATA_LOSS: the content is proven wrong and was deleted. ABORTED: this
  // process no longer owns the disk. Other failures: nothing was published,
  // the bytes are kept.
  virtual base::Result<ImageRecord> Commit(std::stop_token stop) = 0;
  // Makes what is complete resumable.
  virtual void Suspend() = 0;
  // Deletes the temp file and the journal.
  virtual base::Status Discard() = 0;
};

// Makes a new file of `source`, an open ready file with `record` (its chunks
// loaded) on the same file system, share its blocks (reflink), and publishes
// it. UNIMPLEMENTED when the file system cannot; nothing is left then.
base::Result<ImageRecord> Reflink(const Disk& disk, const ImageKey& key,
                                  int source, const ImageRecord& record,
                                  mode_t file_mode,
                                  const std::string& expected_checksum);

}  // namespace bim::store
