#include "pkg/api/client.h"

#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>
#include <netdb.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <utility>

namespace bim::api {
namespace {

using Clock = std::chrono::steady_clock;

base::Status Unreachable(const std::string& address, const std::string& why) {
  return base::UnavailableError("cannot reach the daemon at " + address + ": " +
                                why);
}

// 0, or the errno of an attempt to connect.
int TryConnect(const sockaddr* address, socklen_t length,
               Clock::time_point deadline) {
  const base::UniqueFd fd(::socket(
      address->sa_family, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (!fd) return errno;
  if (::connect(fd.get(), address, length) == 0) return 0;
  if (errno != EINPROGRESS) return errno;
  while (true) {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(
        deadline - Clock::now());
    pollfd waiting{fd.get(), POLLOUT, 0};
    const int ready = ::poll(
        &waiting, 1, static_cast<int>(std::max<int64_t>(left.count(), 0)));
    if (ready < 0 && errno == EINTR) continue;
    if (ready < 0) return errno;
    if (ready == 0) return ETIMEDOUT;
    int error = 0;
    socklen_t size = sizeof(error);
    if (::getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size) != 0) {
      return errno;
    }
    return error;
  }
}

base::Status ConnectError(const std::string& address, int error) {
  switch (error) {
    case 0:
    case EAGAIN:  // a unix socket whose queue is full: somebody is there
      return base::OkStatus();
    case ECONNREFUSED:
    case ENOENT:
      return Unreachable(
          address, std::string(std::strerror(error)) + ": is it running?");
    default:
      return Unreachable(address, std::strerror(error));
  }
}

// gRPC does not tell why a connection failed, so we look first.
base::Status Probe(const Address& address, const std::string& text,
                   const UnixPath& unix_path, Clock::time_point deadline) {
  if (address.is_unix) {
    const sockaddr_un name = UnixSockaddr(unix_path);
    return ConnectError(
        text, TryConnect(reinterpret_cast<const sockaddr*>(&name), sizeof(name),
                         deadline));
  }
  addrinfo hints{};
  hints.ai_family = AF_UNSPEC;
  hints.ai_socktype = SOCK_STREAM;
  hints.ai_flags = AI_NUMERICSERV;
  addrinfo* found = nullptr;
  if (const int error =
          ::getaddrinfo(address.host.c_str(),
                        std::to_string(address.port).c_str(), &hints, &found);
      error != 0) {
    return Unreachable(text, ::gai_strerror(error));
  }
  const std::unique_ptr<addrinfo, decltype(&::freeaddrinfo)> owner(
      found, &::freeaddrinfo);
  int error = 0;
  for (const addrinfo* one = found; one != nullptr; one = one->ai_next) {
    error = TryConnect(one->ai_addr, one->ai_addrlen, deadline);
    if (error == 0) break;
  }
  return ConnectError(text, error);
}

}  // namespace

Client::Client(std::string address, UnixPath unix_path,
               std::shared_ptr<grpc::Channel> channel)
    : address_(std::move(address)),
      unix_path_(std::move(unix_path)),
      channel_(std::move(channel)),
      version_(v1::VersionService::NewStub(channel_)),
      disks_(v1::DiskService::NewStub(channel_)),
      images_(v1::ImageService::NewStub(channel_)),
      limits_(v1::LimitService::NewStub(channel_)) {}

base::Result<std::unique_ptr<Client>> Client::Connect(
    const std::string& address, std::chrono::milliseconds timeout) {
  const Clock::time_point deadline = Clock::now() + timeout;
  BIM_ASSIGN_OR_RETURN(Address parsed, ParseAddress(address));
  UnixPath unix_path;
  std::string target;
  if (parsed.is_unix) {
    base::Result<UnixPath> path = ShortUnixPath(parsed.path);
    if (!path.ok()) return Unreachable(address, path.status().message());
    unix_path = *std::move(path);
    target = "unix:" + unix_path.path;
  } else {
    if (parsed.host.empty()) parsed.host = "localhost";
    target = ToString(parsed);
  }
  BIM_RETURN_IF_ERROR(Probe(parsed, address, unix_path, deadline));

  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  // Channels to the same address are independent: none inherits the failures
  // or the back-off of another.
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  std::shared_ptr<grpc::Channel> channel = grpc::CreateCustomChannel(
      target, grpc::InsecureChannelCredentials(), arguments);
  const auto left = std::max<Clock::duration>(deadline - Clock::now(),
                                              std::chrono::milliseconds(1));
  if (!channel->WaitForConnected(
          std::chrono::system_clock::now() +
          std::chrono::duration_cast<std::chrono::milliseconds>(left))) {
    return Unreachable(
        address, "it accepts connections but does not speak gRPC in time");
  }
  return std::unique_ptr<Client>(
      new Client(address, std::move(unix_path), std::move(channel)));
}

void Client::PrepareContext(grpc::ClientContext& context,
                            std::chrono::milliseconds timeout,
                            const meta::VersionRange& versions) {
  context.AddMetadata(kApiVersionKey, std::to_string(versions.max));
  context.AddMetadata(kApiMinVersionKey, std::to_string(versions.min));
  if (timeout.count() > 0) {
    context.set_deadline(std::chrono::system_clock::now() + timeout);
  }
}

}  // namespace bim::api
