// The last steps of a commit, and what finds a commit that a crash cut short.
// All functions block.
#pragma once

#include <cstdint>
#include <functional>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "pkg/base/status.h"
#include "pkg/store/disk.h"
#include "pkg/store/layout.h"
#include "pkg/store/record.h"

namespace bim::store {

// Publishes the temp file of `key`, open as `fd`, complete and durable:
// format's safety rules, owner check, mode, sealed record, rename, directory
// sync, final record and cfg. `record` has digests and chunks; stamp and
// format are filled in. The errors are those of Ingest::Commit.
base::Result<ImageRecord> Publish(const Disk& disk, const ImageKey& key, int fd,
                                  ImageRecord record, mode_t file_mode,
                                  const std::string& expected_checksum);

// ALREADY_EXISTS: by its record or Longhorn's cfg the file at the image's place
// is that of another one, whose name and uuid make the same directory.
base::Status CheckPlace(const Disk& disk, const ImageKey& key);

// Makes (and makes durable) the directory of an image. ALREADY_EXISTS as
// CheckPlace.
base::Status MakeImageDir(const Disk& disk, const ImageKey& key);

// Writes record and cfg of the ready file as they are now.
base::Status WriteRecord(const Disk& disk, const ImageRecord& record,
                         const std::string& expected_checksum);

// Moves a complete file, with what is recorded of it, by rename from the place
// of one image to that of another on the same disk, where nothing ready lies.
// Nothing is read, its digest (and mtime) stay what they were. A crash in the
// middle leaves it at one of the two places. NOT_FOUND: no file to move.
// ALREADY_EXISTS: a file lies there, or the directory is another image's.
base::Status MoveImage(const Disk& disk, const ImageKey& from,
                       const ImageKey& to,
                       const std::string& expected_checksum);

// Publishes what another program wrote into the temp file of `key`: reads all
// of it once. `expect_sha512`, when given, is compared. Errors as of
// Ingest::Commit and of Scan; a file proven wrong is deleted.
struct AdoptOptions {
  std::optional<base::Digest> expect_sha512;
  mode_t file_mode = 0644;
  std::string origin;
  std::string shown_checksum;
};
base::Result<ImageRecord> AdoptTemp(const Disk& disk, const ImageKey& key,
                                    const AdoptOptions& options,
                                    std::stop_token stop,
                                    const std::function<void(uint64_t)>& done);

// What lies at the place of an image.
struct Found {
  enum class Kind {
    kNothing,  // no ready file
    kReady,    // the file is as its record, or Longhorn's cfg, says
    kChanged,  // there is a record, but the file was touched since
    kUnproven  // a file of which nothing is known: only a full read can tell
  };
  Kind kind = Kind::kNothing;
  ImageRecord record;      // of kReady and kChanged; chunks not loaded
  FileStamp stamp;         // of the file now
  bool by_config = false;  // kReady by Longhorn's cfg: no manifest yet
  bool partial = false;    // kNothing, but a journal: there are bytes to resume
};
// Finishes a commit that a crash cut short after the file was sealed. Reads no
// image data.
base::Result<Found> Inspect(const Disk& disk, const ImageKey& key,
                            mode_t file_mode,
                            const std::string& expected_checksum);

// How far a scan is, in bytes of the file, and how many of them were read:
// holes are not.
using ScanProgress = std::function<void(uint64_t done, uint64_t read)>;

// Reads the ready file of `key` once: digests, chunks and format as they are
// now. ABORTED when the file changed meanwhile. `progress` (may be null) is
// called after each chunk. DATA_LOSS / FAILED_PRECONDITION: no sound image.
base::Result<ImageRecord> Scan(const Disk& disk, const ImageKey& key,
                               bool want_sha256, std::stop_token stop,
                               const ScanProgress& progress);

// FAILED_PRECONDITION while a process has the ready file open; see RemoveImage.
base::Status CheckUnused(const Disk& disk, const ImageKey& key);

// Deletes the files of an image and its directory. FAILED_PRECONDITION while
// a process has the ready file open (named when it can be seen), unless
// forced. Files that are not ours are left, and then the directory, too.
base::Status RemoveImage(const Disk& disk, const ImageKey& key, bool force);
// Gives the ready file, found damaged, a second name (DamagedFile), under which
// it stays when it is replaced. One that was kept before is deleted.
base::Status KeepDamaged(const Disk& disk, const ImageKey& key);

// Where a data source's file waits to be converted.
ImageKey StagingKey(const ImageKey& key);
// What a data source of that name and uuid left in work, unless its process
// lives (holds DataSourceLock). Its complete file stays.
base::Status RemoveDataSourceRemains(const Disk& disk, const ImageKey& key);

// How many images of a disk are in work, or were when their manager ended.
struct Unfinished {
  size_t resumable = 0;  // temp files with a journal
  size_t others = 0;     // without
};
// Reads only, and of a journal its header only. Works on a disk that is not
// owned, too; a directory that cannot be read is left out.
base::Result<Unfinished> CountUnfinished(const io::Dir& root);

// Deletes only what is in work or left over: temp file and journal.
base::Status RemovePartial(const Disk& disk, const ImageKey& key);

}  // namespace bim::store
