#include "pkg/api/listener.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netdb.h>
#include <netinet/in.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

#include <cerrno>
#include <chrono>
#include <cstddef>
#include <cstring>
#include <memory>
#include <thread>

#include "pkg/api/address.h"

namespace bim::api {
namespace {

constexpr int kSocketFlags = SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC;
constexpr std::chrono::seconds kDirectoryLockWait{2};

base::Status ListenError(int error_number, const std::string& address) {
  const std::string what = "cannot listen on " + address;
  if (error_number == EADDRINUSE || error_number == EADDRNOTAVAIL) {
    return base::FailedPreconditionError(what + ": " +
                                         std::strerror(error_number));
  }
  return base::ErrnoError(error_number, what);
}

// One attempt on one TCP address; errno is set when the result is empty.
base::UniqueFd TryListenTcp(const sockaddr* address, socklen_t length,
                            int backlog) {
  base::UniqueFd fd(::socket(address->sa_family, kSocketFlags, 0));
  if (!fd) return {};
  const int on = 1;
  const int off = 0;
  (void)::setsockopt(fd.get(), SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
  if (address->sa_family == AF_INET6) {
    (void)::setsockopt(fd.get(), IPPROTO_IPV6, IPV6_V6ONLY, &off, sizeof(off));
  }
  if (::bind(fd.get(), address, length) != 0 ||
      ::listen(fd.get(), backlog) != 0) {
    const int error = errno;
    fd.Reset();
    errno = error;
  }
  return fd;
}

base::UniqueFd TryListenAll(uint16_t port, int backlog) {
  sockaddr_in6 any6{};
  any6.sin6_family = AF_INET6;
  any6.sin6_addr = in6addr_any;
  any6.sin6_port = htons(port);
  base::UniqueFd fd = TryListenTcp(reinterpret_cast<const sockaddr*>(&any6),
                                   sizeof(any6), backlog);
  if (fd || (errno != EAFNOSUPPORT && errno != EADDRNOTAVAIL)) return fd;
  sockaddr_in any4{};
  any4.sin_family = AF_INET;
  any4.sin_addr.s_addr = htonl(INADDR_ANY);
  any4.sin_port = htons(port);
  return TryListenTcp(reinterpret_cast<const sockaddr*>(&any4), sizeof(any4),
                      backlog);
}

base::Result<Listener> ListenTcp(const Address& address,
                                 const std::string& text,
                                 const ListenOptions& options) {
  Listener listener;
  if (address.host.empty()) {
    listener.fd = TryListenAll(address.port, options.backlog);
  } else {
    addrinfo hints{};
    hints.ai_family = AF_UNSPEC;
    hints.ai_socktype = SOCK_STREAM;
    hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
    addrinfo* found = nullptr;
    const int error =
        ::getaddrinfo(address.host.c_str(),
                      std::to_string(address.port).c_str(), &hints, &found);
    if (error != 0) {
      return base::NotFoundError("cannot listen on " + text + ": " +
                                 ::gai_strerror(error));
    }
    const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(
        found, &::freeaddrinfo);
    listener.fd =
        TryListenTcp(found->ai_addr, found->ai_addrlen, options.backlog);
  }
  if (!listener.fd) return ListenError(errno, text);
  BIM_ASSIGN_OR_RETURN(listener.address, BoundAddress(listener.fd.get()));
  return listener;
}

// Holds the directory of the socket while a stale file in it is judged and
// replaced, so that two daemons never replace each other's.
base::Result<base::UniqueFd> LockDirectory(const std::string& directory,
                                           const std::string& text) {
  base::UniqueFd fd(
      ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC));
  if (!fd) {
    return base::ErrnoError(errno, "cannot listen on " + text +
                                       ": cannot open directory " + directory);
  }
  const auto deadline = std::chrono::steady_clock::now() + kDirectoryLockWait;
  while (::flock(fd.get(), LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK && errno != EINTR) {
      return base::ErrnoError(errno, "cannot lock directory " + directory);
    }
    if (std::chrono::steady_clock::now() > deadline) {
      return base::FailedPreconditionError("cannot listen on " + text + ": " +
                                           directory +
                                           " is locked by another process");
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  return fd;
}

// Removes the file at `path` when it is a socket that nobody listens on.
base::Status RemoveStaleSocket(const UnixPath& path, const std::string& text) {
  struct stat info {};
  if (::lstat(path.path.c_str(), &info) != 0) {
    return errno == ENOENT ? base::OkStatus() : ListenError(errno, text);
  }
  if (!S_ISSOCK(info.st_mode)) {
    return base::FailedPreconditionError(
        "cannot listen on " + text +
        ": the file exists and is not a socket: remove it or use another path");
  }
  const base::UniqueFd probe(::socket(AF_UNIX, kSocketFlags, 0));
  if (!probe) return ListenError(errno, text);
  const sockaddr_un address = UnixSockaddr(path);
  const int connected =
      ::connect(probe.get(), reinterpret_cast<const sockaddr*>(&address),
                sizeof(address));
  const int error = connected == 0 ? 0 : errno;
  if (error == 0 || error == EAGAIN) {  // EAGAIN: its listen queue is full
    return base::FailedPreconditionError("cannot listen on " + text +
                                         ": in use by another process");
  }
  if (error == ENOENT) return base::OkStatus();
  if (error != ECONNREFUSED) return ListenError(error, text);
  if (::unlink(path.path.c_str()) != 0 && errno != ENOENT) {
    return ListenError(errno, text);
  }
  return base::OkStatus();
}

base::Result<Listener> ListenUnix(const Address& address,
                                  const std::string& text,
                                  const ListenOptions& options) {
  const std::string directory =
      address.path.substr(0, address.path.rfind('/') + 1);
  BIM_ASSIGN_OR_RETURN(const base::UniqueFd lock,
                       LockDirectory(directory, text));
  BIM_ASSIGN_OR_RETURN(const UnixPath path, ShortUnixPath(address.path));
  BIM_RETURN_IF_ERROR(RemoveStaleSocket(path, text));

  Listener listener;
  listener.address = text;
  listener.fd = base::UniqueFd(::socket(AF_UNIX, kSocketFlags, 0));
  if (!listener.fd) return ListenError(errno, text);
  // Linux makes the file with the mode of the socket, so that it is never open
  // to more than it should be; the umask may take bits away, hence the second.
  const sockaddr_un name = UnixSockaddr(path);
  if (::fchmod(listener.fd.get(), options.unix_mode) != 0 ||
      ::bind(listener.fd.get(), reinterpret_cast<const sockaddr*>(&name),
             sizeof(name)) != 0 ||
      ::chmod(path.path.c_str(), options.unix_mode) != 0 ||
      ::listen(listener.fd.get(), options.backlog) != 0) {
    return ListenError(errno, text);
  }
  return listener;
}

}  // namespace

base::Result<Listener> Listen(const std::string& address,
                              const ListenOptions& options) {
  base::Result<Address> parsed = ParseAddress(address);
  if (!parsed.ok()) return parsed.status().WithContext("cannot listen");
  return parsed->is_unix ? ListenUnix(*parsed, address, options)
                         : ListenTcp(*parsed, address, options);
}

base::Result<std::string> BoundAddress(int fd) {
  sockaddr_storage storage{};
  socklen_t length = sizeof(storage);
  if (::getsockname(fd, reinterpret_cast<sockaddr*>(&storage), &length) != 0) {
    return base::ErrnoError(errno, "cannot tell where a socket is bound");
  }
  char text[INET6_ADDRSTRLEN] = {};
  Address address;
  switch (storage.ss_family) {
    case AF_UNIX: {
      const auto* name = reinterpret_cast<const sockaddr_un*>(&storage);
      const size_t size = length - offsetof(sockaddr_un, sun_path);
      address.is_unix = true;
      address.path.assign(name->sun_path, ::strnlen(name->sun_path, size));
      return ToString(address);
    }
    case AF_INET: {
      const auto* name = reinterpret_cast<const sockaddr_in*>(&storage);
      address.host = ::inet_ntop(AF_INET, &name->sin_addr, text, sizeof(text));
      address.port = ntohs(name->sin_port);
      return ToString(address);
    }
    case AF_INET6: {
      const auto* name = reinterpret_cast<const sockaddr_in6*>(&storage);
      address.host =
          ::inet_ntop(AF_INET6, &name->sin6_addr, text, sizeof(text));
      address.port = ntohs(name->sin6_port);
      return ToString(address);
    }
    default:
      return base::InvalidArgumentError(
          "the socket is neither TCP nor a unix socket");
  }
}

}  // namespace bim::api
