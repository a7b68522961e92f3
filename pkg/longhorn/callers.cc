#include "pkg/longhorn/callers.h"

#include <grpcpp/client_context.h>
#include <grpcpp/create_channel.h>
#include <grpcpp/security/credentials.h>

#include <nlohmann/json.hpp>
#include <optional>

#include "bimrpc/bimrpc.grpc.pb.h"
#include "pkg/api/grpc_status.h"
#include "pkg/base/names.h"
#include "pkg/http/client.h"
#include "pkg/http/listen.h"
#include "ptypes/syncagent.grpc.pb.h"

namespace bim::longhorn {
namespace {

using base::Status;
using std::chrono::seconds;

constexpr seconds kSendDeadline{30};
constexpr seconds kDataSourceDeadline{10};
constexpr int kMaxAnswer = 64 << 10;
constexpr size_t kMaxShown = 300;
// Between a replica's address and its sync agent's.
constexpr int kSyncAgentPorts = 2;

base::Result<std::shared_ptr<grpc::Channel>> ChannelTo(
    const std::string& address) {
  BIM_RETURN_IF_ERROR(http::ParseHostPort(address).status());
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_HTTP_PROXY, 0);
  arguments.SetInt(GRPC_ARG_USE_LOCAL_SUBCHANNEL_POOL, 1);
  arguments.SetMaxReceiveMessageSize(kMaxAnswer);
  // A peer that is gone without a word ends the call all the same.
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 30'000);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
  return grpc::CreateCustomChannel(
      "dns:///" + address, grpc::InsecureChannelCredentials(), arguments);
}

Status Explain(const grpc::Status& status, const std::string& who,
               const std::stop_token& stop) {
  if (status.ok()) return base::OkStatus();
  if (stop.stop_requested()) {
    return base::CancelledError("stopped while asking " + who);
  }
  const std::string said = base::Printable(status.error_message(), kMaxShown);
  if (status.error_code() == grpc::StatusCode::UNAVAILABLE) {
    return base::UnavailableError("cannot reach " + who + ": " + said);
  }
  if (status.error_code() == grpc::StatusCode::DEADLINE_EXCEEDED) {
    return base::UnavailableError(who + " does not answer in time");
  }
  return base::FailedPreconditionError(who + " refused: " + said);
}

class Requester final : public transfer::PushRequester {
 public:
  Status AskSend(const std::string& address, const store::ImageKey& key,
                 const std::string& to, std::stop_token stop) override {
    BIM_ASSIGN_OR_RETURN(const auto channel, ChannelTo(address));
    const auto stub = ::bimrpc::BackingImageManagerService::NewStub(channel);
    grpc::ClientContext context;
    context.set_deadline(std::chrono::system_clock::now() + kSendDeadline);
    const std::stop_callback cancel(stop, [&] { context.TryCancel(); });
    ::bimrpc::SendRequest request;
    request.set_name(key.name);
    request.set_uuid(key.uuid);
    request.set_to_address(to);
    google::protobuf::Empty empty;
    return Explain(stub->Send(&context, request, &empty), "manager " + address,
                   stop);
  }

  Status AskExport(const transfer::VolumeExport& volume,
                   const std::string& host, uint16_t port,
                   std::stop_token stop) override {
    BIM_ASSIGN_OR_RETURN(http::HostPort agent,
                         http::ParseHostPort(volume.address));
    if (agent.port > UINT16_MAX - kSyncAgentPorts) {
      return base::InvalidArgumentError("the port of replica " +
                                        volume.address + " is too large");
    }
    agent.port = static_cast<uint16_t>(agent.port + kSyncAgentPorts);
    BIM_ASSIGN_OR_RETURN(const auto channel,
                         ChannelTo(http::JoinHostPort(agent.host, agent.port)));
    const auto stub = ::ptypes::SyncAgentService::NewStub(channel);
    // No deadline: it lasts as long as the export, whose bytes we watch.
    grpc::ClientContext context;
    const std::stop_callback cancel(stop, [&] { context.TryCancel(); });
    ::ptypes::VolumeExportRequest request;
    request.set_snapshot_file_name(volume.snapshot);
    request.set_host(host);
    request.set_port(port);
    request.set_export_backing_image_if_exist(true);
    request.set_file_sync_http_client_timeout(
        static_cast<int32_t>(volume.client_timeout.count()));
    google::protobuf::Empty empty;
    return Explain(stub->VolumeExport(&context, request, &empty),
                   "replica " + volume.address, stop);
  }
};

base::Result<std::string> Ask(const std::string& address,
                              const std::string& method,
                              const std::string& target) {
  http::PutRequest request;
  request.method = method;
  request.url = "http://" + address + target;
  request.content_length = 0;
  request.deadlines.connect = kDataSourceDeadline;
  request.deadlines.first_byte = kDataSourceDeadline;
  request.deadlines.stall = kDataSourceDeadline;
  const http::PutResult result =
      http::Put(request, [](std::span<std::byte>) { return size_t{0}; }, {});
  if (!result.outcome.status.ok()) {
    return base::UnavailableError("data source: " +
                                  result.outcome.status.message());
  }
  if (result.status != 200) {
    return base::FailedPreconditionError(
        "data source " + address + " refused: " +
        base::Printable(result.body.substr(0, result.body.find('\n')),
                        kMaxShown) +
        " (HTTP " + std::to_string(result.status) + ")");
  }
  return result.body;
}

}  // namespace

std::unique_ptr<transfer::PushRequester> MakePushRequester() {
  return std::make_unique<Requester>();
}

Status ClaimDataSource(const std::string& address, const store::ImageKey& key,
                       const std::string& disk_uuid) {
  BIM_RETURN_IF_ERROR(
      http::ParseHostPort(address).status().WithContext("data_source_address"));
  BIM_ASSIGN_OR_RETURN(const std::string text, Ask(address, "GET", "/v1/file"));
  const auto info = nlohmann::json::parse(text, nullptr, false);
  const auto member = [&](const char* name) -> std::string {
    if (!info.is_object()) return "";
    const auto it = info.find(name);
    return it != info.end() && it->is_string() ? it->get<std::string>() : "";
  };
  const auto differs = [&](const std::string& what, const std::string& expected,
                           const std::string& found) {
    return base::FailedPreconditionError(
        "data source " + address + ": expected " + what + " '" + expected +
        "', found '" + base::Printable(found, kMaxShown) + "'");
  };
  if (member("uuid") != key.uuid) {
    return differs("uuid", key.uuid, member("uuid"));
  }
  if (member("diskUUID") != disk_uuid) {
    return differs("diskUUID", disk_uuid, member("diskUUID"));
  }
  // It sees the disk at another path than we do, perhaps.
  const std::string place =
      "/" + store::DataFile({key.name, key.uuid, store::Place::kDataSource});
  const std::string path = member("filePath");
  if (!path.starts_with('/') || !path.ends_with(place) ||
      path.find("/../") != std::string::npos) {
    return differs("a file at the disk's", place, path);
  }
  const std::string state = member("state");
  if (state != "ready-for-transfer" && state != "ready") {
    const std::string message = member("message");
    return differs("state", "ready-for-transfer",
                   state + (message.empty() ? "" : " (" + message + ")"));
  }
  return Ask(address, "POST", "/v1/file?action=transfer").status();
}

}  // namespace bim::longhorn
