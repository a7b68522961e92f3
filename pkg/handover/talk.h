// A conversation between two managers: small JSON documents over a unix socket
// that lies on the disk (.bim/sock), descriptors beside them. Each document is
// one packet. The first one of each side is a hello, and never changes, so that
// managers of any two versions can tell that they do not understand each other.
//
// Blocks. Thread-safety: Send, Receive and Close from different threads at
// once, each by one thread at a time.
#pragma once

#include <chrono>
#include <mutex>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>

#include "pkg/base/status.h"
#include "pkg/base/unique_fd.h"
#include "pkg/io/dir.h"
#include "pkg/meta/version.h"

namespace bim::handover {

inline constexpr char kSocketFile[] = ".bim/sock";
inline constexpr size_t kMaxPacket = 64 * 1024;
inline constexpr size_t kMaxDescriptors = 32;

// Who speaks.
struct Party {
  std::string manager_id;
  std::string instance;  // of this process
  std::string version;
  std::string endpoint;  // where people and control planes reach it
  meta::VersionRange api{meta::kApiMinVersion, meta::kApiVersion};
  meta::VersionRange disk_format{meta::kDiskFormatMinVersion,
                                 meta::kDiskFormatVersion};
  std::string net_namespace;  // sockets are of use in the same one only
};
// This process.
Party Self(const std::string& manager_id, const std::string& endpoint);
nlohmann::json ToHello(const Party& party);
// INVALID_ARGUMENT: it is no hello.
base::Result<Party> FromHello(const nlohmann::json& document);
// OK when both can work on the same disks and speak the same API; else
// UNIMPLEMENTED that names both ranges.
base::Status CheckCompatible(const Party& owner, const Party& candidate);
// FAILED_PRECONDITION: somebody is to decide between both, and both are the
// same manager.
base::Status CheckDistinct(const Party& owner, const Party& candidate,
                           bool automatic);

// A member of a document that is a text; empty: there is none.
std::string TextOf(const nlohmann::json& document, const char* key);

class Talk {
 public:
  explicit Talk(base::UniqueFd socket) : socket_(std::move(socket)) {}
  // To the owner of the disk at `root`. UNAVAILABLE: nobody listens there.
  static base::Result<std::unique_ptr<Talk>> Connect(const io::Dir& root);

  struct Packet {
    nlohmann::json document;
    std::vector<base::UniqueFd> descriptors;
  };
  // Waits 5 s at most for a reader. UNAVAILABLE: the other end is gone.
  base::Status Send(const nlohmann::json& document,
                    const std::vector<int>& descriptors = {});
  // nullopt: nothing came in time. UNAVAILABLE: the other end is gone.
  // INVALID_ARGUMENT: what came is no document.
  base::Result<std::optional<Packet>> Receive(
      std::chrono::milliseconds timeout);
  // Ends both directions: who waits is told UNAVAILABLE.
  void Close();

 private:
  base::UniqueFd socket_;
  std::mutex sending_;
};

// The listening end on a disk that this process owns: replaces what lies
// there. Only its own effective user may connect.
base::Result<base::UniqueFd> ListenOn(const io::Dir& root);
// Non-blocking. nullptr: nobody waits, or who waits is another user.
std::unique_ptr<Talk> Accept(int listener);

}  // namespace bim::handover
