#include "daemon/longhorn_client.h"

#include <chrono>
#include <cstdio>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <stop_token>
#include <string_view>

#include "bimrpc/bimrpc.grpc.pb.h"
#include "pkg/meta/version.h"

namespace bim::daemon {
namespace {

using Json = nlohmann::ordered_json;
using Service = ::bimrpc::BackingImageManagerService;
using Empty = google::protobuf::Empty;

void Print(std::string_view text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
}

std::string Dump(const Json& json) {
  return json.dump(1, '\t', false, Json::error_handler_t::replace) + "\n";
}

Json ToJson(const ::bimrpc::BackingImageResponse& image) {
  const ::bimrpc::BackingImageSpec& spec = image.spec();
  const ::bimrpc::BackingImageStatus& status = image.status();
  return {{"name", spec.name()},
          {"uuid", spec.uuid()},
          {"size", spec.size()},
          {"virtualSize", spec.virtualsize()},
          {"realSize", spec.realsize()},
          {"expectedChecksum", spec.checksum()},
          {"status",
           {{"state", status.state()},
            {"currentChecksum", status.checksum()},
            {"sendingReference", status.sending_reference()},
            {"errorMsg", status.error_msg()},
            {"senderManagerAddress", status.sender_manager_address()},
            {"progress", status.progress()}}}};
}

Json ToJson(const ::bimrpc::VersionResponse& version) {
  return {{"version", version.version()},
          {"gitCommit", version.gitcommit()},
          {"buildDate", version.builddate()},
          {"backingImageManagerAPIVersion",
           version.backing_image_manager_api_version()},
          {"backingImageManagerAPIMinVersion",
           version.backing_image_manager_api_min_version()}};
}

::bimrpc::VersionResponse OurVersion() {
  ::bimrpc::VersionResponse version;
  version.set_version(meta::Version());
  version.set_gitcommit(meta::GitCommit());
  version.set_builddate(meta::BuildDate());
  version.set_backing_image_manager_api_version(meta::kLonghornApiVersion);
  version.set_backing_image_manager_api_min_version(
      meta::kLonghornApiMinVersion);
  return version;
}

CommandEnd Open(const ClientOptions& options,
                std::unique_ptr<Connection>& connection) {
  std::optional<Connection::Clock::time_point> deadline;
  if (options.timeout) deadline = Connection::Clock::now() + *options.timeout;
  return Connection::Open(options.url, deadline, std::stop_token(), connection);
}

// For requests that say which image they mean, and nothing else.
template <typename Request>
Request RequestFor(const LonghornCommand& command) {
  Request request;
  request.set_name(command.name);
  request.set_uuid(command.uuid);
  return request;
}

void FillSpec(const LonghornCommand& command,
              ::bimrpc::BackingImageSpec& spec) {
  spec.set_name(command.name);
  spec.set_uuid(command.uuid);
  spec.set_size(command.size);
  spec.set_checksum(command.checksum);
}

}  // namespace

std::string RenderLonghornImage(const ::bimrpc::BackingImageResponse& image) {
  return Dump(ToJson(image));
}

std::string RenderLonghornList(const ::bimrpc::ListResponse& images) {
  // The message's own map has no order.
  const std::map<std::string, ::bimrpc::BackingImageResponse> sorted(
      images.backing_images().begin(), images.backing_images().end());
  Json json = Json::object();
  for (const auto& [name, image] : sorted) json[name] = ToJson(image);
  return Dump(json);
}

std::string RenderLonghornVersion(
    const std::optional<::bimrpc::VersionResponse>& server) {
  Json json;
  json["clientVersion"] = ToJson(OurVersion());
  json["serverVersion"] = server ? ToJson(*server) : Json();
  return Dump(json);
}

CommandEnd RunLonghornCommand(const ClientOptions& options,
                              const LonghornCommand& command) {
  using Call = LonghornCommand::Call;
  std::unique_ptr<Connection> connection;
  CommandEnd end = Open(options, connection);
  if (!end.ok()) return end;
  const auto stub = Service::NewStub(connection->channel());
  ::bimrpc::BackingImageResponse image;
  Empty nothing;
  switch (command.call) {
    case Call::kSync: {
      ::bimrpc::SyncRequest request;
      FillSpec(command, *request.mutable_spec());
      request.set_from_address(command.address);
      end = connection->Call(*stub, &Service::Stub::Sync, request, image);
      break;
    }
    case Call::kFetch: {
      ::bimrpc::FetchRequest request;
      FillSpec(command, *request.mutable_spec());
      request.set_data_source_address(command.address);
      end = connection->Call(*stub, &Service::Stub::Fetch, request, image);
      break;
    }
    case Call::kGet:
      end = connection->Call(*stub, &Service::Stub::Get,
                             RequestFor<::bimrpc::GetRequest>(command), image);
      break;
    case Call::kDelete:
      return connection->Call(*stub, &Service::Stub::Delete,
                              RequestFor<::bimrpc::DeleteRequest>(command),
                              nothing);
    case Call::kSend: {
      auto request = RequestFor<::bimrpc::SendRequest>(command);
      request.set_to_address(command.address);
      return connection->Call(*stub, &Service::Stub::Send, request, nothing);
    }
    case Call::kPrepareDownload: {
      ::bimrpc::PrepareDownloadResponse response;
      end = connection->Call(
          *stub, &Service::Stub::PrepareDownload,
          RequestFor<::bimrpc::PrepareDownloadRequest>(command), response);
      if (end.ok()) {
        Print("Source file path: " + response.src_file_path() +
              "\nDownload server address: " + response.address() + "\n");
      }
      return end;
    }
    case Call::kList: {
      ::bimrpc::ListResponse images;
      end = connection->Call(*stub, &Service::Stub::List, nothing, images);
      if (end.ok()) Print(RenderLonghornList(images));
      return end;
    }
  }
  if (end.ok()) Print(RenderLonghornImage(image));
  return end;
}

CommandEnd ShowLonghornVersion(const ClientOptions& options,
                               const VersionCommand& command) {
  CommandEnd end;
  std::optional<::bimrpc::VersionResponse> server;
  if (!command.client_only) {
    std::unique_ptr<Connection> connection;
    end = Open(options, connection);
    ::bimrpc::VersionResponse answer;
    if (end.ok()) {
      const auto stub = Service::NewStub(connection->channel());
      end =
          connection->Call(*stub, &Service::Stub::VersionGet, Empty(), answer);
    }
    if (end.ok()) server = answer;
  }
  Print(RenderLonghornVersion(server));
  return end;
}

}  // namespace bim::daemon
