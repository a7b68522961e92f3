#include "daemon/state_dir.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <stdlib.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <system_error>
#include <utility>

#include "pkg/base/names.h"

namespace bim::daemon {
namespace {

constexpr char kLock[] = "lock";
constexpr char kManagerId[] = "manager-id";
constexpr char kEndpoint[] = "endpoint.json";

base::Status MakeDirs(const std::string& path) {
  for (size_t slash = path.find('/', 1);; slash = path.find('/', slash + 1)) {
    const std::string part = path.substr(0, slash);
    // The parents are as other programs make them, only the last is ours.
    const mode_t mode = slash == path.npos ? 0700 : 0755;
    if (mkdir(part.c_str(), mode) != 0 && errno != EEXIST) {
      return base::ErrnoError(
          errno, fmt::format("cannot make the state_dir {}", part));
    }
    if (slash == path.npos) return base::OkStatus();
  }
}

base::Result<std::string> ReadManagerId(const io::Dir& dir) {
  BIM_ASSIGN_OR_RETURN(std::string id, dir.ReadFile(kManagerId, 256));
  id.erase(id.find_last_not_of('\n') + 1);
  return id;
}

}  // namespace

std::string EndpointJson(const Endpoints& endpoints, int pid) {
  nlohmann::ordered_json json;
  json["api"] = endpoints.api;
  json["socket"] = endpoints.socket;
  if (!endpoints.sync.empty()) json["sync"] = endpoints.sync;
  json["data"] = endpoints.data;
  json["pid"] = pid;
  return json.dump(-1, ' ', false,
                   nlohmann::ordered_json::error_handler_t::replace) +
         "\n";
}

base::Result<StateDir> StateDir::Open(const std::string& path) {
  BIM_RETURN_IF_ERROR(MakeDirs(path));
  StateDir state;
  BIM_ASSIGN_OR_RETURN(state.dir_, io::Dir::Open(path));
  BIM_ASSIGN_OR_RETURN(state.lock_,
                       state.dir_.OpenFile(kLock, O_RDWR | O_CREAT, 0600));
  const int fd = state.lock_.get();
  if (flock(fd, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) {
      return base::ErrnoError(errno, "cannot lock the state_dir " + path);
    }
    char pid[16] = {};
    const ssize_t size = pread(fd, pid, sizeof(pid) - 1, 0);
    std::string owner(pid, size > 0 ? static_cast<size_t>(size) : 0);
    owner.erase(owner.find_last_not_of('\n') + 1);
    return base::FailedPreconditionError(
        fmt::format("state_dir {} is in use by process {}: stop that daemon, "
                    "or give this one another node.state_dir",
                    path, owner.empty() ? "(unknown)" : owner));
  }
  // For the message above only; the lock is what counts.
  const std::string pid = fmt::format("{}\n", getpid());
  if (ftruncate(fd, 0) != 0) {
    return base::ErrnoError(errno, "cannot write " + path + "/lock");
  }
  BIM_RETURN_IF_ERROR(
      io::PwriteAll(fd, pid, 0, "cannot write " + path + "/lock"));
  // Left by one that was killed.
  BIM_RETURN_IF_ERROR(state.RemoveEndpoints());
  return state;
}

base::Result<StateDir> StateDir::OpenEphemeral() {
  const char* parent = getenv("TMPDIR");
  std::string path = fmt::format("{}/bim-XXXXXX",
                                 parent && parent[0] == '/' ? parent : "/tmp");
  if (!mkdtemp(path.data())) {
    return base::ErrnoError(errno, "cannot make the state_dir " + path);
  }
  // Before anything can fail.
  decltype(ephemeral_) ephemeral(new std::string(path));
  BIM_ASSIGN_OR_RETURN(StateDir state, Open(path));
  state.ephemeral_ = std::move(ephemeral);
  return state;
}

void StateDir::RemoveTree::operator()(const std::string* path) const {
  std::error_code ignored;  // what stays behind in /tmp harms nobody
  std::filesystem::remove_all(*path, ignored);
  delete path;
}

base::Result<std::string> StateDir::ManagerId() const {
  const auto read = ReadManagerId(dir_);
  if (read.ok()) {
    const std::string& id = *read;
    if (const base::Status named = base::CheckName(id, "id"); !named.ok()) {
      return base::Status(
          base::Code::kDataLoss,
          fmt::format("{}/{}: {}; restore it, or remove it to become another "
                      "manager",
                      dir_.path(), kManagerId, named.message()));
    }
    return id;
  }
  if (read.status().code() != base::Code::kNotFound) return read.status();
  const std::string id = base::GenerateUuid();
  BIM_RETURN_IF_ERROR(dir_.ReplaceFile(kManagerId, id + "\n", 0600));
  return id;
}

std::string StateDir::PeekManagerId(const std::string& path) {
  const auto dir = io::Dir::Open(path);
  if (!dir.ok()) return "";
  const auto id = ReadManagerId(*dir);
  return id.ok() && base::CheckName(*id, "id").ok() ? *id : "";
}

base::Status StateDir::WriteEndpoints(const Endpoints& endpoints) const {
  return dir_.ReplaceFile(kEndpoint, EndpointJson(endpoints, getpid()), 0644);
}

base::Status StateDir::RemoveEndpoints() const {
  return dir_.RemoveFile(kEndpoint);
}

}  // namespace bim::daemon
