#include "daemon/listeners.h"

#include <fcntl.h>

#include <filesystem>
#include <system_error>
#include <utility>

#include "pkg/api/address.h"
#include "pkg/api/listener.h"

namespace bim::daemon {
namespace {

base::Result<base::UniqueFd> Duplicate(const base::UniqueFd& fd) {
  base::UniqueFd made(::fcntl(fd.get(), F_DUPFD_CLOEXEC, 0));
  if (!made) return base::ErrnoError(errno, "cannot duplicate a socket");
  return made;
}

class Opener {
 public:
  explicit Opener(std::vector<handover::ListeningSocket> inherited)
      : inherited_(std::move(inherited)) {}

  base::Result<api::Listener> Open(const std::string& what,
                                   const std::string& configured) {
    const std::string name = what + " " + configured;
    api::Listener listener;
    for (handover::ListeningSocket& socket : inherited_) {
      if (socket.address != name || !socket.fd) continue;
      BIM_ASSIGN_OR_RETURN(listener.address,
                           api::BoundAddress(socket.fd.get()));
      listener.fd = std::move(socket.fd);
      break;
    }
    if (!listener.fd) {
      BIM_ASSIGN_OR_RETURN(listener, api::Listen(configured));
    }
    BIM_ASSIGN_OR_RETURN(base::UniqueFd kept, Duplicate(listener.fd));
    kept_.push_back({name, std::move(kept)});
    return listener;
  }
  std::vector<handover::ListeningSocket> TakeKept() { return std::move(kept_); }

 private:
  std::vector<handover::ListeningSocket> inherited_;
  std::vector<handover::ListeningSocket> kept_;
};

}  // namespace

base::Result<Listeners> OpenListeners(
    const Config& config, std::vector<handover::ListeningSocket> inherited) {
  Listeners listeners;
  Opener opener(std::move(inherited));
  for (const std::string& address : config.listen) {
    BIM_ASSIGN_OR_RETURN(api::Listener listener, opener.Open("api", address));
    listeners.api.push_back(std::move(listener.fd));
    listeners.bound.api.push_back(listener.address);
  }
  if (!config.socket.empty()) {
    BIM_ASSIGN_OR_RETURN(const api::Address address,
                         api::ParseAddress(config.socket));
    // Its directory is usually on a tmpfs. One level only: a typing mistake
    // makes no tree.
    std::error_code ignored;  // Listen says what is wrong
    std::filesystem::create_directory(
        std::filesystem::path(address.path).parent_path(), ignored);
    BIM_ASSIGN_OR_RETURN(api::Listener listener,
                         opener.Open("api", config.socket));
    listeners.api.push_back(std::move(listener.fd));
    listeners.bound.socket = listener.address;
  }
  if (!config.data_listen.empty()) {
    BIM_ASSIGN_OR_RETURN(api::Listener listener,
                         opener.Open("data", config.data_listen));
    listeners.data = std::move(listener.fd);
    listeners.bound.data = listener.address;
  }
  if (const std::string& sync = config.longhorn.sync_listen; !sync.empty()) {
    BIM_ASSIGN_OR_RETURN(api::Listener listener, opener.Open("sync", sync));
    BIM_ASSIGN_OR_RETURN(const api::Address address,
                         api::ParseAddress(listener.address));
    listeners.sync = std::move(listener.fd);
    listeners.sync_port = address.port;
    listeners.bound.sync = listener.address;
    // It answers what the data port would, too.
    if (!listeners.data) listeners.bound.data = listener.address;
  }
  listeners.kept = opener.TakeKept();
  return listeners;
}

}  // namespace bim::daemon
