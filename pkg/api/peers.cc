#include "pkg/api/peers.h"

#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <algorithm>
#include <optional>
#include <string_view>
#include <utility>

#include "bim/v1/node.grpc.pb.h"
#include "pkg/api/address.h"
#include "pkg/api/client.h"
#include "pkg/api/grpc_status.h"
#include "pkg/base/names.h"

namespace bim::api {
namespace {

using std::chrono::milliseconds;

// The answer is a few hundred bytes.
constexpr int kMaxAnswer = 64 << 10;
constexpr size_t kMaxShown = 300;

// As part of a URI: the "%" of an IPv6 zone, and the brackets that gRPC
// encodes.
std::string EscapePercent(std::string_view text) {
  std::string escaped;
  for (const char c : text) {
    escaped += c;
    if (c == '%') escaped += "25";
  }
  return escaped;
}
std::string Unescape(std::string_view text) {
  std::string plain;
  for (size_t i = 0; i < text.size(); ++i) {
    const std::string_view code = text.substr(i, 3);
    const char c = code == "%5B"   ? '['
                   : code == "%5D" ? ']'
                   : code == "%25" ? '%'
                                   : '\0';
    plain += c == '\0' ? text[i] : c;
    if (c != '\0') i += 2;
  }
  return plain;
}

// The IP of "ipv4:10.0.0.1:9500" or "ipv6:%5B::1%5D:9500".
std::optional<std::string> IpOf(std::string_view uri) {
  const size_t colon = uri.find(':');
  if (colon == std::string_view::npos || !uri.starts_with("ipv")) {
    return std::nullopt;
  }
  const auto address = ParseAddress(Unescape(uri.substr(colon + 1)));
  if (!address.ok() || address->is_unix || address->host.empty()) {
    return std::nullopt;
  }
  return address->host;
}

base::Status Refused(const std::string& address, const std::string& why) {
  return base::FailedPreconditionError("peer " + address + ": " + why);
}

// What a failed call says of the peer.
base::Status Explain(const std::string& address, const grpc::Status& status,
                     const std::stop_token& stop) {
  const std::string said = base::Printable(status.error_message(), kMaxShown);
  switch (status.error_code()) {
    case grpc::StatusCode::CANCELLED:
      if (stop.stop_requested()) {
        return base::CancelledError("stopped while asking peer " + address);
      }
      [[fallthrough]];
    case grpc::StatusCode::UNAVAILABLE:
      return base::UnavailableError("cannot reach peer " + address + ": " +
                                    said);
    case grpc::StatusCode::DEADLINE_EXCEEDED:
      return base::UnavailableError("cannot reach peer " + address +
                                    ": it does not answer in time");
    case grpc::StatusCode::FAILED_PRECONDITION:
      return Refused(address, said);
    default:
      return Refused(address, "it is no daemon of ours: " + said);
  }
}

}  // namespace

base::Result<transfer::PeerInfo> GrpcPeers::Resolve(const std::string& address,
                                                    milliseconds timeout,
                                                    std::stop_token stop) {
  BIM_ASSIGN_OR_RETURN(const Address parsed, ParsePeerAddress(address));
  timeout = std::max(timeout, milliseconds(1));

  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  // How long one of several addresses may take to connect: then there is time
  // left for the next.
  arguments.SetInt(
      GRPC_ARG_MIN_RECONNECT_BACKOFF_MS,
      static_cast<int>(std::clamp<int64_t>(timeout.count() / 2, 1, 20'000)));
  arguments.SetMaxReceiveMessageSize(kMaxAnswer);
  const auto stub = v1::VersionService::NewStub(
      grpc::CreateCustomChannel("dns:///" + EscapePercent(ToString(parsed)),
                                grpc::InsecureChannelCredentials(), arguments));

  grpc::ClientContext context;
  Client::PrepareContext(context, timeout, versions_);
  const std::stop_callback cancel(stop, [&] { context.TryCancel(); });
  v1::VersionGetRequest request;
  request.set_api_version(versions_.max);
  request.set_api_min_version(versions_.min);
  v1::VersionGetResponse answer;
  const grpc::Status status = stub->VersionGet(&context, request, &answer);
  if (!status.ok()) return Explain(address, status, stop);

  const auto theirs =
      StatedVersions(answer.api_version(), answer.api_min_version());
  if (answer.api_version() == 0 || answer.api_min_version() == 0 ||
      !theirs.ok() || !base::CheckName(answer.manager_id(), "id").ok()) {
    return Refused(address,
                   "it is no daemon of ours: it tells no id or no versions");
  }
  if (const base::Status known = CheckVersions(versions_, **theirs);
      !known.ok()) {
    return Refused(address, known.message());
  }
  if (answer.data_endpoint().empty()) {
    return Refused(address, "it serves no data: its api.data_listen is empty");
  }
  const auto data = ParseAddress(answer.data_endpoint());
  if (!data.ok() || data->is_unix || data->port == 0) {
    return Refused(address, "its data endpoint is no address: " +
                                base::Printable(answer.data_endpoint()));
  }
  const std::optional<std::string> ip = IpOf(context.peer());
  if (!ip) {
    return base::InternalError("gRPC does not tell the address of peer " +
                               address + ": " + context.peer());
  }
  return transfer::PeerInfo{.manager_id = answer.manager_id(),
                            .ip = *ip,
                            .data_port = data->port,
                            .api_version = answer.api_version()};
}

}  // namespace bim::api
