// The files that lie beside an image: our record with its manifest, the resume
// journal, and Longhorn's cfg. Formats and (de)serialisation only; who writes
// them when is Ingest's business.
//
// backing.bim begins with one line, "bim-record V M N D" or "bim-journal V M N
// D": format version, the oldest version that can read it, length in bytes of
// the JSON header that follows, and the header's SHA-256 in hex. Behind the
// header of a record lies the chunk table (its SHA-256 is in the header);
// behind that of a journal lie entries of 48 bytes, appended one by one.
// A newer file is read when its M allows it and refused by name otherwise.
#pragma once

#include <sys/stat.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "pkg/base/digest.h"
#include "pkg/base/status.h"
#include "pkg/io/dir.h"
#include "pkg/store/layout.h"
#include "pkg/store/manifest.h"

namespace bim::store {

// What identifies the state of a file without reading it.
struct FileStamp {
  uint64_t size = 0;
  uint64_t inode = 0;
  int64_t mtime_ns = 0;  // since 1970
  int64_t ctime_ns = 0;  // 0: not known yet (sealed, not published)
  friend bool operator==(const FileStamp&, const FileStamp&) = default;
};
FileStamp StampOf(const struct stat& st);
// True when `now` is the file that was recorded: all equal, where a recorded
// ctime of 0 matches any.
bool Matches(const FileStamp& recorded, const FileStamp& now);

// A ready image on one disk.
struct ImageRecord {
  ImageKey key;
  FileStamp stamp;
  std::string format;  // "qcow2", "raw", "iso"
  uint64_t virtual_size = 0;
  base::Digest sha512;
  std::optional<base::Digest> sha256;
  // `sha512` is what a trusted peer said; the chunks are proven, the whole is
  // not yet.
  bool sha512_pending = false;
  std::string origin;       // how it came, for people
  int64_t verified_ns = 0;  // when all of it was last received or read
  uint64_t chunk_size = 0;
  // Empty while only the header was read, or when there is no manifest.
  std::vector<Chunk> chunks;
  uint32_t chunk_count = 0;  // 0: there is no manifest
};

std::string EncodeRecord(const ImageRecord& record);
// NOT_FOUND: no file, or it is a journal. FAILED_PRECONDITION: written by a
// newer version. DATA_LOSS: damaged. With `with_chunks` the table is read and
// checked, too.
base::Result<ImageRecord> ReadRecord(const io::Dir& disk, const ImageKey& key,
                                     bool with_chunks);

// What another daemon is told of a ready image: the record without what is
// only this disk's (stamp, origin). In the same framing, "bim-manifest V M N
// D". Also for a record without chunks: then it has none.
std::string EncodeManifest(const ImageRecord& record);
// The stamp has only the size. FAILED_PRECONDITION: of a newer format.
// DATA_LOSS: damaged, or its numbers do not fit together.
base::Result<ImageRecord> DecodeManifest(std::string text);
// The longest one that is taken, in bytes.
inline constexpr size_t kMaxManifest =
    256 + 64 * 1024 + size_t{kMaxChunks} * 33;

// A journal: the digests of chunks whose data is on the disk.
struct JournalHeader {
  ImageKey key;
  uint64_t size = 0;
  uint64_t chunk_size = 0;
  // Binds the bytes to their source: what the source said identifies its
  // content (a strong ETag, a date), never empty.
  std::string validator;
  uint64_t inode = 0;  // of the temp file
};
struct Journal {
  JournalHeader header;
  // By chunk number; nullopt: not arrived.
  std::vector<std::optional<Chunk>> chunks;
};
std::string EncodeJournalHeader(const JournalHeader& header);
std::string EncodeJournalEntry(uint32_t index, const Chunk& chunk);
// As ReadRecord. A torn last entry, and what follows it, is left out.
base::Result<Journal> ReadJournal(const io::Dir& disk, const ImageKey& key);
// Whether there is one; reads its header only.
bool HasJournal(const io::Dir& disk, const ImageKey& key);

// Whose record or journal lies in the directory of `key`: another image's,
// when two share its name. NOT_FOUND: none that can be read.
base::Result<ImageKey> ReadOwnerOfRecord(const io::Dir& disk,
                                         const ImageKey& key);

// Longhorn's backing.cfg.
struct LonghornConfig {
  std::string file_path;  // "name": as the writing manager saw it
  std::string uuid;
  uint64_t size = 0;
  uint64_t virtual_size = 0;
  uint64_t real_size = 0;
  std::string expected_checksum;
  std::string current_checksum;
  std::string modification_time;
};
std::string EncodeConfig(const LonghornConfig& config);
base::Result<LonghornConfig> ReadConfig(const io::Dir& disk,
                                        const ImageKey& key);
// "2026-11-20 23:48:34.567157303 +0000 UTC", no trailing zeros in the
// fraction, no fraction when it is zero.
std::string FormatModificationTime(int64_t mtime_ns);

}  // namespace bim::store
