// A directory beneath which files are opened, made, replaced and removed: all
// access to a disk goes through it.
//
// Every path is relative, is resolved by openat2(2) with RESOLVE_BENEATH and
// RESOLVE_NO_SYMLINKS, so neither ".." nor a planted link leads out of the
// directory (PERMISSION_DENIED). All functions block. Thread-safety: const
// functions from any thread; a Dir is an owned descriptor, move-only.
#pragma once

#include <fcntl.h>
#include <sys/stat.h>

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "pkg/base/status.h"
#include "pkg/base/unique_fd.h"

namespace bim::io {

class Dir {
 public:
  Dir() = default;
  // Opens an absolute path given by the operator; links in it are followed.
  static base::Result<Dir> Open(const std::string& path);

  int fd() const { return fd_.get(); }
  bool valid() const { return static_cast<bool>(fd_); }
  // For messages: the path it was opened by.
  const std::string& path() const { return path_; }

  // O_CLOEXEC and O_NOCTTY are added. `mode` counts with O_CREAT only.
  base::Result<base::UniqueFd> OpenFile(const std::string& relative, int flags,
                                        mode_t mode = 0644) const;
  base::Result<Dir> OpenDir(const std::string& relative) const;
  // Makes one directory; fine when it is there. Not durable before Sync of its
  // parent.
  base::Status MakeDir(const std::string& relative, mode_t mode) const;
  // Of the file itself, never of what a link points to (a link is
  // PERMISSION_DENIED). NOT_FOUND when there is nothing.
  base::Result<struct stat> Stat(const std::string& relative) const;
  // Fine when it is not there.
  base::Status RemoveFile(const std::string& relative) const;
  // Removes an empty directory; fine when it is not there.
  base::Status RemoveDir(const std::string& relative) const;
  base::Status Rename(const std::string& from, const std::string& to) const;
  // Gives the file `from` a second name (hard link), replacing what is there.
  base::Status Link(const std::string& from, const std::string& to) const;
  // Fails with ALREADY_EXISTS when `to` exists.
  base::Status RenameNew(const std::string& from, const std::string& to) const;
  // fsync of this directory itself.
  base::Status Sync() const;
  // Calls `visit` with each entry's name except "." and "..", in no order,
  // until it returns false. `type` is d_type.
  base::Status List(const std::function<bool(std::string_view name,
                                             unsigned char type)>& visit) const;

  // Reads a whole regular file of at most `max_size` bytes (OUT_OF_RANGE when
  // larger).
  base::Result<std::string> ReadFile(const std::string& relative,
                                     size_t max_size) const;
  // Write-new, fsync, rename, fsync of the directory that holds it. The new
  // file is called `relative` + ".new". After a crash the old or the new
  // content is there, whole.
  base::Status ReplaceFile(const std::string& relative,
                           std::string_view content, mode_t mode = 0644) const;

 private:
  // The parent directory of `relative` (itself when it has no '/') and the
  // last component: what unlinkat and renameat need to stay beneath.
  base::Result<std::pair<base::UniqueFd, std::string>> Parent(
      const std::string& relative) const;

  base::UniqueFd fd_;
  std::string path_;
};

// Writes all of `data` at `offset`.
base::Status PwriteAll(int fd, std::string_view data, uint64_t offset,
                       std::string_view what);
// Reads until `size` bytes or the end of the file; the count read.
base::Result<size_t> PreadFull(int fd, void* buffer, size_t size,
                               uint64_t offset, std::string_view what);

}  // namespace bim::io
