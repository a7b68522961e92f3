// The daemon's own directory: who uses it, who this daemon is, where it is
// reached.
//
//   lock           flock held while a daemon uses the directory; its pid
//   manager-id     the generated identity, made once
//   endpoint.json  where the running daemon listens; removed when it ends
//
// All functions block. One thread.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "pkg/base/status.h"
#include "pkg/base/unique_fd.h"
#include "pkg/io/dir.h"

namespace bim::daemon {

struct Endpoints {
  std::vector<std::string> api;  // TCP, with the ports that were bound
  std::string socket;            // "unix:/path", or empty
  std::string data;              // TCP, or empty
  std::string sync;              // Longhorn's file service; TCP, or empty
};

// The identity that is kept in a state_dir, which may be in use; empty: none,
// or it cannot be read. Makes nothing.
std::string KnownManagerId(const std::string& path);

// {"api":[...],"socket":"...","data":"...","pid":N}
std::string EndpointJson(const Endpoints& endpoints, int pid);

class StateDir {
 public:
  // Makes the directory (and its parents) with mode 0700 and locks it, until
  // the object is destroyed. FAILED_PRECONDITION: "state_dir X is in use by
  // process N"; else what the file system says.
  static base::Result<StateDir> Open(const std::string& path);

  // A new one under TMPDIR (or /tmp) that nobody else knows; removed with all
  // that is in it when the object is destroyed.
  static base::Result<StateDir> OpenEphemeral();

  // Absolute.
  const std::string& path() const { return dir_.path(); }

  // The identity that is kept here; generated when there is none. DATA_LOSS
  // when the file holds no name: an identity is never replaced by guess.
  base::Result<std::string> ManagerId() const;

  base::Status WriteEndpoints(const Endpoints& endpoints) const;
  base::Status RemoveEndpoints() const;

 private:
  struct RemoveTree {
    void operator()(const std::string* path) const;
  };

  // Destroyed last. Null: the directory stays.
  std::unique_ptr<const std::string, RemoveTree> ephemeral_;
  io::Dir dir_;
  base::UniqueFd lock_;
};

}  // namespace bim::daemon
