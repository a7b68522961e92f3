#include "pkg/io/dir.h"

#include <dirent.h>
#include <linux/openat2.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <memory>

namespace bim::io {
namespace {

using base::ErrnoError;
using base::OkStatus;
using base::Result;
using base::Status;
using base::UniqueFd;

// openat2 has no glibc wrapper in Debian 12. EAGAIN means that a rename raced
// with the look-up: tried again, bounded.
int OpenBeneath(int dir_fd, const char* path, int flags, mode_t mode) {
  struct open_how how = {};
  how.flags = static_cast<uint64_t>(flags) | O_CLOEXEC;
  if ((flags & O_PATH) == 0) how.flags |= O_NOCTTY;
  how.mode = (flags & O_CREAT) != 0 ? mode : 0;
  how.resolve = RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS | RESOLVE_NO_MAGICLINKS;
  for (int tries = 0;; ++tries) {
    const long fd = syscall(SYS_openat2, dir_fd, path, &how, sizeof(how));
    if (fd >= 0) return static_cast<int>(fd);
    if ((errno != EAGAIN && errno != EINTR) || tries >= 100) return -1;
  }
}

}  // namespace

Result<Dir> Dir::Open(const std::string& path) {
  Dir dir;
  dir.path_ = path;
  dir.fd_ = UniqueFd(
      ::open(path.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC | O_NOCTTY));
  if (!dir.fd_) return ErrnoError(errno, "cannot open directory " + path);
  return dir;
}

Result<UniqueFd> Dir::OpenFile(const std::string& relative, int flags,
                               mode_t mode) const {
  UniqueFd fd(OpenBeneath(fd_.get(), relative.c_str(), flags, mode));
  if (!fd) {
    return ErrnoError(errno, "cannot open " + path_ + "/" + relative);
  }
  return fd;
}

Result<Dir> Dir::OpenDir(const std::string& relative) const {
  Dir dir;
  dir.path_ = path_ + "/" + relative;
  BIM_ASSIGN_OR_RETURN(dir.fd_, OpenFile(relative, O_RDONLY | O_DIRECTORY));
  return dir;
}

Result<std::pair<UniqueFd, std::string>> Dir::Parent(
    const std::string& relative) const {
  const size_t slash = relative.rfind('/');
  if (slash == std::string::npos) {
    UniqueFd fd(fcntl(fd_.get(), F_DUPFD_CLOEXEC, 0));
    if (!fd) return ErrnoError(errno, "cannot duplicate a descriptor");
    return std::make_pair(std::move(fd), relative);
  }
  BIM_ASSIGN_OR_RETURN(
      UniqueFd fd, OpenFile(relative.substr(0, slash), O_RDONLY | O_DIRECTORY));
  return std::make_pair(std::move(fd), relative.substr(slash + 1));
}

Status Dir::MakeDir(const std::string& relative, mode_t mode) const {
  BIM_ASSIGN_OR_RETURN(auto parent, Parent(relative));
  if (::mkdirat(parent.first.get(), parent.second.c_str(), mode) == 0) {
    // Not what the umask left of it.
    BIM_ASSIGN_OR_RETURN(UniqueFd made,
                         OpenFile(relative, O_RDONLY | O_DIRECTORY));
    if (::fchmod(made.get(), mode) != 0) {
      return ErrnoError(errno,
                        "cannot set the mode of " + path_ + "/" + relative);
    }
    return OkStatus();
  }
  if (errno != EEXIST) {
    return ErrnoError(errno, "cannot make directory " + path_ + "/" + relative);
  }
  // What is there must be a directory, not a link to one.
  return OpenFile(relative, O_PATH | O_DIRECTORY).status();
}

Result<struct stat> Dir::Stat(const std::string& relative) const {
  BIM_ASSIGN_OR_RETURN(UniqueFd fd, OpenFile(relative, O_PATH));
  struct stat st = {};
  if (::fstat(fd.get(), &st) != 0) {
    return ErrnoError(errno, "cannot stat " + path_ + "/" + relative);
  }
  return st;
}

Status Dir::RemoveFile(const std::string& relative) const {
  auto parent = Parent(relative);
  if (!parent.ok()) {
    return parent.status().code() == base::Code::kNotFound ? OkStatus()
                                                           : parent.status();
  }
  if (::unlinkat(parent->first.get(), parent->second.c_str(), 0) != 0 &&
      errno != ENOENT) {
    return ErrnoError(errno, "cannot remove " + path_ + "/" + relative);
  }
  return OkStatus();
}

Status Dir::RemoveDir(const std::string& relative) const {
  auto parent = Parent(relative);
  if (!parent.ok()) {
    return parent.status().code() == base::Code::kNotFound ? OkStatus()
                                                           : parent.status();
  }
  if (::unlinkat(parent->first.get(), parent->second.c_str(), AT_REMOVEDIR) !=
          0 &&
      errno != ENOENT) {
    return ErrnoError(errno,
                      "cannot remove directory " + path_ + "/" + relative);
  }
  return OkStatus();
}

Status Dir::Rename(const std::string& from, const std::string& to) const {
  BIM_ASSIGN_OR_RETURN(auto source, Parent(from));
  BIM_ASSIGN_OR_RETURN(auto target, Parent(to));
  if (::renameat(source.first.get(), source.second.c_str(), target.first.get(),
                 target.second.c_str()) != 0) {
    return ErrnoError(errno,
                      "cannot rename " + path_ + "/" + from + " to " + to);
  }
  return OkStatus();
}

Status Dir::RenameNew(const std::string& from, const std::string& to) const {
  BIM_ASSIGN_OR_RETURN(auto source, Parent(from));
  BIM_ASSIGN_OR_RETURN(auto target, Parent(to));
  if (::renameat2(source.first.get(), source.second.c_str(), target.first.get(),
                  target.second.c_str(), RENAME_NOREPLACE) != 0) {
    return ErrnoError(errno,
                      "cannot rename " + path_ + "/" + from + " to " + to);
  }
  return OkStatus();
}

Status Dir::Link(const std::string& from, const std::string& to) const {
  BIM_RETURN_IF_ERROR(RemoveFile(to));
  BIM_ASSIGN_OR_RETURN(auto source, Parent(from));
  BIM_ASSIGN_OR_RETURN(auto target, Parent(to));
  if (::linkat(source.first.get(), source.second.c_str(), target.first.get(),
               target.second.c_str(), 0) != 0) {
    return ErrnoError(errno, "cannot link " + path_ + "/" + from + " to " + to);
  }
  return OkStatus();
}

Status Dir::Sync() const {
  if (::fsync(fd_.get()) != 0) {
    return ErrnoError(errno, "cannot sync directory " + path_);
  }
  return OkStatus();
}

Status Dir::List(
    const std::function<bool(std::string_view, unsigned char)>& visit) const {
  // An own open file description: the read position is not shared.
  BIM_ASSIGN_OR_RETURN(UniqueFd fd, OpenFile(".", O_RDONLY | O_DIRECTORY));
  std::unique_ptr<DIR, int (*)(DIR*)> stream(::fdopendir(fd.get()),
                                             &::closedir);
  if (!stream) return ErrnoError(errno, "cannot list " + path_);
  fd.Release();
  while (true) {
    errno = 0;
    const struct dirent* entry = ::readdir(stream.get());
    if (entry == nullptr) {
      if (errno != 0) return ErrnoError(errno, "cannot list " + path_);
      return OkStatus();
    }
    const std::string_view name = entry->d_name;
    if (name == "." || name == "..") continue;
    if (!visit(name, entry->d_type)) return OkStatus();
  }
}

Result<std::string> Dir::ReadFile(const std::string& relative,
                                  size_t max_size) const {
  // O_NONBLOCK: a planted FIFO must not hold us.
  BIM_ASSIGN_OR_RETURN(UniqueFd fd, OpenFile(relative, O_RDONLY | O_NONBLOCK));
  struct stat st = {};
  if (::fstat(fd.get(), &st) != 0) {
    return ErrnoError(errno, "cannot stat " + path_ + "/" + relative);
  }
  if (!S_ISREG(st.st_mode)) {
    return base::FailedPreconditionError(path_ + "/" + relative +
                                         " is not a regular file");
  }
  if (static_cast<uint64_t>(st.st_size) > max_size) {
    return base::OutOfRangeError(
        path_ + "/" + relative + " has " + std::to_string(st.st_size) +
        " bytes, at most " + std::to_string(max_size) + " were expected");
  }
  std::string content(static_cast<size_t>(st.st_size), '\0');
  BIM_ASSIGN_OR_RETURN(size_t count,
                       PreadFull(fd.get(), content.data(), content.size(), 0,
                                 path_ + "/" + relative));
  content.resize(count);
  return content;
}

Status Dir::ReplaceFile(const std::string& relative, std::string_view content,
                        mode_t mode) const {
  const std::string fresh = relative + ".new";
  BIM_RETURN_IF_ERROR(RemoveFile(fresh));
  {
    BIM_ASSIGN_OR_RETURN(UniqueFd fd,
                         OpenFile(fresh, O_WRONLY | O_CREAT | O_EXCL, mode));
    Status written = PwriteAll(fd.get(), content, 0, path_ + "/" + relative);
    if (written.ok() && ::fsync(fd.get()) != 0) {
      written = ErrnoError(errno, "cannot sync " + path_ + "/" + fresh);
    }
    if (!written.ok()) {
      (void)RemoveFile(fresh);
      return written;
    }
  }
  if (Status renamed = Rename(fresh, relative); !renamed.ok()) {
    (void)RemoveFile(fresh);
    return renamed;
  }
  BIM_ASSIGN_OR_RETURN(auto parent, Parent(relative));
  if (::fsync(parent.first.get()) != 0) {
    return ErrnoError(errno,
                      "cannot sync the directory of " + path_ + "/" + relative);
  }
  return OkStatus();
}

Status PwriteAll(int fd, std::string_view data, uint64_t offset,
                 std::string_view what) {
  while (!data.empty()) {
    const ssize_t count =
        ::pwrite(fd, data.data(), data.size(), static_cast<off_t>(offset));
    if (count < 0) {
      if (errno == EINTR) continue;
      return ErrnoError(errno, "cannot write " + std::string(what));
    }
    data.remove_prefix(static_cast<size_t>(count));
    offset += static_cast<uint64_t>(count);
  }
  return OkStatus();
}

Result<size_t> PreadFull(int fd, void* buffer, size_t size, uint64_t offset,
                         std::string_view what) {
  size_t done = 0;
  while (done < size) {
    const ssize_t count =
        ::pread(fd, static_cast<char*>(buffer) + done, size - done,
                static_cast<off_t>(offset + done));
    if (count < 0) {
      if (errno == EINTR) continue;
      return ErrnoError(errno, "cannot read " + std::string(what));
    }
    if (count == 0) break;
    done += static_cast<size_t>(count);
  }
  return done;
}

}  // namespace bim::io
