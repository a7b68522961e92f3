// An ingest is the only way bytes reach an image file. What it writes is
// invisible until Commit, and a file that does not have every byte can never
// be committed, whoever stops when.
//
// Bytes come through writers, each giving a range of the file in order; several
// may be at work on different ranges at once. They pass through once, in blocks
// of 1 MiB: the writer's thread hashes them by chunks (and compares with the
// reference), a stage writes them (zeros as holes), another hashes the whole in
// order, a third makes them durable now and then. The digests of complete
// chunks are journaled, so that a later ingest goes on where this one was
// (Restore). A handful of blocks is in flight: memory does not grow with the
// file, writers wait (backpressure).
//
// All functions block. Thread-safety: one caller at a time for the ingest, and
// one for each writer; WriteAt(), HoleAt(), stored_bytes(), total_bytes() and
// HasChunk() from any thread. The destructor suspends: what is complete stays
// resumable.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <stop_token>
#include <string>
#include <vector>

#include "pkg/base/digest.h"
#include "pkg/base/status.h"
#include "pkg/io/sparse.h"
#include "pkg/store/disk.h"
#include "pkg/store/layout.h"
#include "pkg/store/record.h"

namespace bim::store {

struct IngestOptions {
  std::optional<base::Digest> expect_sha512;
  std::optional<base::Digest> expect_sha256;
  // A ready copy's record with its chunks: each chunk is compared as it
  // arrives, and the file must get the record's digests.
  std::shared_ptr<const ImageRecord> reference;
  // With a reference: its chunks are proof enough, the whole is not hashed.
  bool trust_reference = false;
  // With trust_reference: the record is marked sha512_pending.
  bool sha512_pending = false;
  mode_t file_mode = 0644;
  std::string origin;  // for the record, "download"
  // The expected checksum that backing.cfg shows; may be empty.
  std::string shown_checksum;
};

// Gives a range of the file in order. Destroyed: what it completed counts;
// what it began of a chunk may be continued by a writer that begins there (one
// that begins at the chunk's begin gives those bytes once more: the first ones
// stay). With a reference it is dropped: nothing of it is proven.
class IngestWriter {
 public:
  virtual ~IngestWriter() = default;
  // The next bytes. OUT_OF_RANGE beyond the range; RESOURCE_EXHAUSTED: disk
  // full; CANCELLED: stopped; other failures are those of the disk. DATA_LOSS:
  // a chunk differs from the reference; what came of it was dropped, and
  // position() is where it begins: the writer may go on there.
  virtual base::Status Append(std::span<const std::byte> data,
                              std::stop_token stop) = 0;
  virtual base::Status AppendZeros(uint64_t count, std::stop_token stop) = 0;
  // Where the next bytes belong.
  virtual uint64_t position() const = 0;
  // Hands on what is in memory. (The destructor does, too, and cannot tell of
  // failures; they are found by Commit.)
  virtual base::Status Flush(std::stop_token stop) = 0;
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

  // Reads those bytes again, checks them chunk by chunk, and continues with
  // those that are good: Missing() tells what is not. With a reference only
  // chunks that are as it says count, whatever content they were part of.
  // CANCELLED when stopped; nothing is lost then.
  virtual base::Status Restore(std::stop_token stop) = 0;
  // Starts from nothing; drops partial bytes. Without a size, or with an empty
  // validator, the bytes cannot be resumed by another process. With a reference
  // its chunks of zeros are there at once. INVALID_ARGUMENT: size 0 or no
  // multiple of 512, or not the reference's.
  virtual base::Status Begin(std::optional<uint64_t> size,
                             std::string validator) = 0;
  // True after Begin, or a Restore that found bytes.
  virtual bool begun() const = 0;
  // Of the content in work, as given to Begin or found by Restore.
  virtual const std::string& validator() const = 0;
  virtual const std::shared_ptr<const ImageRecord>& reference() const = 0;

  // The ranges that nobody has given, in order, while no writer is at work.
  // Each begins at a chunk, or where a writer stopped within one (after WriteAt
  // and HoleAt anywhere). Without a size: one, up to the largest size possible.
  virtual std::vector<io::Extent> Missing() = 0;
  virtual uint64_t chunk_size() const = 0;
  virtual bool HasChunk(uint32_t index) const = 0;
  // Begins to give bytes from `begin` on, which is the begin of a chunk or of a
  // missing range, and ends at `end`, which is that of a chunk, or of the file.
  // No other writer may be within. From any thread.
  virtual std::unique_ptr<IngestWriter> Write(uint64_t begin, uint64_t end) = 0;
  // Shares the blocks of an open file on the same file system (reflink) instead
  // of writing a missing chunk, and compares it with the reference. From any
  // thread. UNIMPLEMENTED: the file system cannot; DATA_LOSS: it differs.
  virtual base::Status CloneChunk(uint32_t index, int source,
                                  uint64_t source_offset) = 0;

  // For those who bring bytes in any order, from several threads at once, also
  // again. Needs a size; not together with writers or Append. A chunk counts
  // once every byte of it was given: one that is given whole (of at most 1 MiB)
  // is hashed from memory, any other is read back by whoever completes it.
  // (Until then what was given again replaces what was given before.)
  // OUT_OF_RANGE beyond the file; INVALID_ARGUMENT: not a multiple of 512;
  // DATA_LOSS: bytes given again for a complete chunk differ from those that
  // are there, or a chunk differs from the reference (then it is missing
  // again); RESOURCE_EXHAUSTED: disk full, or what was given is in more than
  // 262,144 separate pieces; CANCELLED: stopped, a part of it may have been
  // taken; other failures are those of the disk.
  virtual base::Status WriteAt(uint64_t offset, std::span<const std::byte> data,
                               std::stop_token stop) = 0;
  // The same for zeros: costs by chunks, not by bytes.
  virtual base::Status HoleAt(uint64_t begin, uint64_t end,
                              std::stop_token stop) = 0;
  // The SHA-512 of [begin, end) when all chunks that it touches are complete;
  // else nullopt. Reads them. From any thread.
  virtual base::Result<std::optional<base::Digest>> DigestAt(
      uint64_t begin, uint64_t end, std::stop_token stop) = 0;

  // Waits until everything that was given is in the file; the failure of the
  // disk, if it failed. No writer may be at work, but that of Append.
  virtual base::Status Settle() = 0;
  // The same; then gives back threads and memory until more bytes come.
  virtual base::Status Rest() = 0;
  // The failure so far. From any thread.
  virtual base::Status failure() const = 0;

  // For those who give all bytes in order: a writer behind the scenes, that
  // begins at the first missing byte.
  virtual base::Status Append(std::span<const std::byte> data,
                              std::stop_token stop) = 0;
  virtual base::Status AppendZeros(uint64_t count, std::stop_token stop) = 0;
  // The first byte that is missing.
  virtual uint64_t position() = 0;

  // How many bytes are on the disk. From any thread.
  virtual uint64_t stored_bytes() const = 0;
  // The size of the whole file; 0 while it is not known. From any thread.
  virtual uint64_t total_bytes() const = 0;

  // What the whole must be, told late: Commit compares with it, too. (Not with
  // trust_reference: the whole is not hashed.)
  virtual void ExpectSha512(const base::Digest& digest) = 0;
  // All bytes were given, all writers are gone: makes them durable, checks
  // size, digests and the format's safety rules, and publishes the file.
  // UNAVAILABLE: bytes are missing, or the disk cannot be used.
  // FAILED_PRECONDITION and DATA_LOSS: the content is proven wrong and was
  // deleted. ABORTED: this process no longer owns the disk; nothing was
  // published. Other failures are those of the disk, or CANCELLED. Up to the
  // rename they leave nothing published, and bytes that can be resumed are
  // kept. Behind it the file stands under its name, complete and proven, with
  // its sealed record; what failed is to make the rename durable, or to write
  // the cfg and the final record. Inspect finds the file and does that.
  virtual base::Result<ImageRecord> Commit(std::stop_token stop) = 0;
  // Makes what is complete resumable. No writer may be at work.
  virtual void Suspend() = 0;
  // Deletes the temp file and the journal. No writer may be at work.
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
