#include "pkg/handover/talk.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#include <cstring>
#include <memory>

#include "pkg/base/names.h"

namespace bim::handover {
namespace {

using base::Result;
using base::Status;
using base::UniqueFd;
using nlohmann::json;

constexpr timeval kSendTimeout{5, 0};

std::string OwnNetNamespace() {
  char buffer[64];
  const ssize_t count = ::readlink("/proc/self/ns/net", buffer, sizeof(buffer));
  return count > 0 ? std::string(buffer, static_cast<size_t>(count)) : "";
}

// A path of any length, by the directory that is open.
sockaddr_un AddressIn(const io::Dir& bim) {
  sockaddr_un address = {};
  address.sun_family = AF_UNIX;
  const std::string path =
      "/proc/self/fd/" + std::to_string(bim.fd()) + "/sock";
  std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
  return address;
}

Result<UniqueFd> MakeSocket() {
  UniqueFd made(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
  if (!made) return base::ErrnoError(errno, "cannot make a unix socket");
  return made;
}

Status Gone(const std::string& why) {
  return base::UnavailableError("the other manager is gone: " + why);
}

int Number(const json& document, const char* key) {
  const auto it = document.find(key);
  return it != document.end() && it->is_number_integer() ? it->get<int>() : 0;
}

std::string Shown(const meta::VersionRange& range) {
  return std::to_string(range.min) + " to " + std::to_string(range.max);
}

}  // namespace

std::string TextOf(const json& document, const char* key) {
  const auto it = document.find(key);
  return it != document.end() && it->is_string() ? it->get<std::string>() : "";
}

Party Self(const std::string& manager_id, const std::string& endpoint) {
  Party self;
  self.manager_id = manager_id;
  self.instance = base::GenerateUuid();
  self.version = meta::Version();
  self.endpoint = endpoint;
  self.net_namespace = OwnNetNamespace();
  return self;
}

json ToHello(const Party& party) {
  return {{"bim", "hello"},
          {"managerId", party.manager_id},
          {"instance", party.instance},
          {"version", party.version},
          {"endpoint", party.endpoint},
          {"apiVersion", party.api.max},
          {"apiMinVersion", party.api.min},
          {"diskFormatVersion", party.disk_format.max},
          {"diskFormatMinVersion", party.disk_format.min},
          {"netNamespace", party.net_namespace}};
}

Result<Party> FromHello(const json& document) {
  Party party;
  if (!document.is_object() || TextOf(document, "bim") != "hello") {
    return base::InvalidArgumentError(
        "expected the hello of a manager, found something else");
  }
  party.manager_id = TextOf(document, "managerId");
  party.instance = TextOf(document, "instance");
  party.version = TextOf(document, "version");
  party.endpoint = TextOf(document, "endpoint");
  party.net_namespace = TextOf(document, "netNamespace");
  party.api = {Number(document, "apiMinVersion"),
               Number(document, "apiVersion")};
  party.disk_format = {Number(document, "diskFormatMinVersion"),
                       Number(document, "diskFormatVersion")};
  BIM_RETURN_IF_ERROR(base::CheckName(party.manager_id, "managerId"));
  BIM_RETURN_IF_ERROR(base::CheckName(party.instance, "instance"));
  return party;
}

Status CheckCompatible(const Party& owner, const Party& candidate) {
  const auto differ = [&](const std::string& what,
                          const meta::VersionRange& ours,
                          const meta::VersionRange& theirs) {
    return base::UnimplementedError(
        "the owner (manager " + owner.manager_id + ", " + owner.version +
        ") speaks " + what + " " + Shown(ours) + ", the candidate (manager " +
        candidate.manager_id + ", " + candidate.version + ") " + Shown(theirs));
  };
  if (!meta::Overlap(owner.api, candidate.api)) {
    return differ("API versions", owner.api, candidate.api);
  }
  // What the owner wrote is in its newest format.
  if (!meta::Overlap(owner.disk_format, candidate.disk_format)) {
    return differ("disk format versions", owner.disk_format,
                  candidate.disk_format);
  }
  return base::OkStatus();
}

Status CheckDistinct(const Party& owner, const Party& candidate,
                     bool automatic) {
  if (automatic || candidate.manager_id != owner.manager_id) {
    return base::OkStatus();
  }
  return base::FailedPreconditionError(
      "both managers are " + owner.manager_id +
      ": a hand-over that somebody decides about needs two identities, with a "
      "state_dir or manager_id of each one's own");
}

Result<std::unique_ptr<Talk>> Talk::Connect(const io::Dir& root) {
  const auto bim = root.OpenDir(".bim");
  if (!bim.ok()) return Gone(bim.status().message());
  BIM_ASSIGN_OR_RETURN(UniqueFd made, MakeSocket());
  const sockaddr_un address = AddressIn(*bim);
  ::setsockopt(made.get(), SOL_SOCKET, SO_SNDTIMEO, &kSendTimeout,
               sizeof(kSendTimeout));
  if (::connect(made.get(), reinterpret_cast<const sockaddr*>(&address),
                sizeof(address)) != 0) {
    return Gone(base::ErrnoError(errno, "cannot connect to " + root.path() +
                                            "/" + kSocketFile)
                    .message());
  }
  return std::make_unique<Talk>(std::move(made));
}

Status Talk::Send(const json& document, const std::vector<int>& descriptors) {
  const std::string text =
      document.dump(-1, ' ', false, json::error_handler_t::replace);
  if (text.size() > kMaxPacket || descriptors.size() > kMaxDescriptors) {
    return base::InvalidArgumentError(
        "a packet of " + std::to_string(text.size()) + " bytes is too large");
  }
  iovec part{const_cast<char*>(text.data()), text.size()};
  msghdr header = {};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxDescriptors * sizeof(int))] = {};
  if (!descriptors.empty()) {
    const size_t bytes = descriptors.size() * sizeof(int);
    header.msg_control = control;
    header.msg_controllen = CMSG_SPACE(bytes);
    cmsghdr* const item = CMSG_FIRSTHDR(&header);
    item->cmsg_level = SOL_SOCKET;
    item->cmsg_type = SCM_RIGHTS;
    item->cmsg_len = CMSG_LEN(bytes);
    std::memcpy(CMSG_DATA(item), descriptors.data(), bytes);
  }
  std::lock_guard lock(sending_);
  if (::sendmsg(socket_.get(), &header, MSG_NOSIGNAL) < 0) {
    return Gone(base::ErrnoError(errno, "cannot send").message());
  }
  return base::OkStatus();
}

Result<std::optional<Talk::Packet>> Talk::Receive(
    std::chrono::milliseconds timeout) {
  pollfd waiting{socket_.get(), POLLIN, 0};
  const int ready = ::poll(&waiting, 1, static_cast<int>(timeout.count()));
  if (ready == 0 || (ready < 0 && errno == EINTR)) {
    return std::optional<Packet>();
  }
  std::string text(kMaxPacket + 1, '\0');
  iovec part{text.data(), text.size()};
  alignas(cmsghdr) char control[CMSG_SPACE(kMaxDescriptors * sizeof(int))] = {};
  msghdr header = {};
  header.msg_iov = &part;
  header.msg_iovlen = 1;
  header.msg_control = control;
  header.msg_controllen = sizeof(control);
  const ssize_t count =
      ::recvmsg(socket_.get(), &header, MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  if (count < 0) {
    if (errno == EAGAIN || errno == EINTR) return std::optional<Packet>();
    return Gone(base::ErrnoError(errno, "cannot receive").message());
  }
  Packet packet;
  for (cmsghdr* item = CMSG_FIRSTHDR(&header); item != nullptr;
       item = CMSG_NXTHDR(&header, item)) {
    if (item->cmsg_level != SOL_SOCKET || item->cmsg_type != SCM_RIGHTS) {
      continue;
    }
    const size_t found = (item->cmsg_len - CMSG_LEN(0)) / sizeof(int);
    for (size_t i = 0; i < found; ++i) {
      int fd = -1;
      std::memcpy(&fd, CMSG_DATA(item) + i * sizeof(int), sizeof(int));
      packet.descriptors.emplace_back(fd);
    }
  }
  if (count == 0) return Gone("it ended the conversation");
  text.resize(static_cast<size_t>(count));
  packet.document = json::parse(text, nullptr, false);
  if (!packet.document.is_object() || (header.msg_flags & MSG_TRUNC) != 0) {
    return base::InvalidArgumentError("expected a JSON object of at most " +
                                      std::to_string(kMaxPacket) + " bytes");
  }
  return std::optional(std::move(packet));
}

void Talk::Close() { ::shutdown(socket_.get(), SHUT_RDWR); }

Result<UniqueFd> ListenOn(const io::Dir& root) {
  BIM_ASSIGN_OR_RETURN(const io::Dir bim, root.OpenDir(".bim"));
  BIM_RETURN_IF_ERROR(root.RemoveFile(kSocketFile));
  BIM_ASSIGN_OR_RETURN(UniqueFd made, MakeSocket());
  // Who may connect follows from the file's mode, from the first moment on.
  if (::fchmod(made.get(), 0600) != 0) {
    return base::ErrnoError(errno, "cannot set the mode of a socket");
  }
  const sockaddr_un address = AddressIn(bim);
  if (::bind(made.get(), reinterpret_cast<const sockaddr*>(&address),
             sizeof(address)) != 0 ||
      ::listen(made.get(), 8) != 0 ||
      ::fcntl(made.get(), F_SETFL, O_NONBLOCK) != 0) {
    return base::ErrnoError(
        errno, "cannot listen on " + root.path() + "/" + kSocketFile);
  }
  return made;
}

std::unique_ptr<Talk> Accept(int listener) {
  UniqueFd accepted(::accept4(listener, nullptr, nullptr, SOCK_CLOEXEC));
  if (!accepted) return nullptr;
  ucred peer = {};
  socklen_t size = sizeof(peer);
  if (::getsockopt(accepted.get(), SOL_SOCKET, SO_PEERCRED, &peer, &size) !=
          0 ||
      (peer.uid != ::geteuid() && peer.uid != 0)) {
    return nullptr;
  }
  ::setsockopt(accepted.get(), SOL_SOCKET, SO_SNDTIMEO, &kSendTimeout,
               sizeof(kSendTimeout));
  return std::make_unique<Talk>(std::move(accepted));
}

}  // namespace bim::handover
