// From an older layout of .bim, or none, to that of this program; and the copy
// of the metadata that is made before.
//
// A disk that is older than this program is used as it is: what is written then
// can be read by the program that made it (its format file says from which
// version on). Only a migration, which somebody asked for or confirmed, raises
// the number.
//
// All functions block; the caller holds the disk's lock.
#pragma once

#include <cstdint>
#include <string>

#include "pkg/base/status.h"
#include "pkg/io/dir.h"

namespace bim::store {

inline constexpr char kBackupDir[] = ".bim/backup";

// The copy of the metadata of a disk in that format; 0: of a disk that no
// manager of this kind ever owned.
std::string BackupDir(int64_t format);

// Copies what says something about the disk's images (never an image) to
// BackupDir(format), durable; done when that is there, or when there is nothing
// of another manager. A crash in the middle
// leaves a copy that the next call completes, before anything is changed.
// RESOURCE_EXHAUSTED: the disk is full.
base::Status KeepMetadata(const io::Dir& root, int64_t format);

struct Migration {
  int64_t from = 0;
  int64_t to = 0;      // as `from`: there is nothing to do
  std::string backup;  // beneath the disk; empty: there is nothing to do
};
// What Migrate would do. NOT_FOUND: nobody ever owned the disk.
// FAILED_PRECONDITION: it is newer than this program.
base::Result<Migration> PlanMigration(const io::Dir& root);
// Does it, the format file last, durable: after a crash in the middle the disk
// is still as old as it was, and the next call goes on. Errors as of
// PlanMigration and KeepMetadata.
base::Result<Migration> Migrate(const io::Dir& root);

// Writes the format file of this program's layout; durable.
base::Status WriteFormat(const io::Dir& root);

}  // namespace bim::store
