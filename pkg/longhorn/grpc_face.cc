#include "pkg/longhorn/grpc_face.h"

#include <grpcpp/grpcpp.h>

#include <string_view>
#include <utility>

#include "bimrpc/bimrpc.grpc.pb.h"
#include "pkg/api/blocking_calls.h"
#include "pkg/api/grpc_status.h"
#include "pkg/api/pull_stream.h"
#include "pkg/http/listen.h"
#include "pkg/longhorn/callers.h"
#include "pkg/longhorn/convert.h"
#include "pkg/meta/version.h"

namespace bim::longhorn {
namespace {

using google::protobuf::Empty;

constexpr size_t kEventBatch = 64;

base::Result<std::string> DiskOf(const grpc::ServerContextBase& context) {
  const auto [first, last] = context.client_metadata().equal_range(kDiskKey);
  if (first == last) return std::string();
  if (std::next(first) != last) {
    return base::InvalidArgumentError(std::string(kDiskKey) +
                                      " is given more than once");
  }
  return std::string(first->second.data(), first->second.size());
}

grpc::ServerUnaryReactor* Reply(grpc::CallbackServerContext* context,
                                const base::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(api::ToGrpc(status));
  return reactor;
}

template <typename Request>
base::Status CheckKey(const Request& request) {
  BIM_RETURN_IF_ERROR(CheckPresent("name", request.name()));
  return CheckPresent("uuid", request.uuid());
}

// Our own IP as who calls from "ipv4:10.0.0.1:1234" sees it.
std::string OwnHost(std::string peer) {
  for (const auto& [code, c] : {std::pair("%5B", "["), std::pair("%5D", "]")}) {
    if (const size_t at = peer.find(code); at != std::string::npos) {
      peer.replace(at, 3, c);
    }
  }
  const size_t colon = peer.find(':');
  if (peer.starts_with("ipv") && colon != std::string::npos) {
    const auto own = http::OwnAddressTowards(peer.substr(colon + 1));
    if (own.ok()) return *own;
  }
  return "127.0.0.1";
}

// An empty message for every batch of changes.
class ChangeProducer {
 public:
  explicit ChangeProducer(manager::Manager& manager) : manager_(manager) {
    // What is there now is no change.
    while (!manager_.NextEvents(position_, kEventBatch).empty()) {
    }
  }
  api::Produced operator()(Empty* /*message*/) {
    bool changed = false;
    while (true) {
      const auto events = manager_.NextEvents(position_, kEventBatch);
      if (events.empty()) break;
      for (const manager::Event& event : events) {
        changed = changed || event.image.spec.directed ||
                  event.type == manager::Event::Type::kRemoved;
      }
    }
    return {changed ? api::Produced::Kind::kMessage
                    : api::Produced::Kind::kNothing};
  }

 private:
  manager::Manager& manager_;
  manager::WatchPosition position_;
};

class Service final
    : public ::bimrpc::BackingImageManagerService::CallbackService {
 public:
  Service(GrpcFace::Options options, manager::Manager& manager,
          exec::EventLoop& loop, exec::WorkerPool& pool)
      : options_(std::move(options)),
        manager_(manager),
        loop_(loop),
        blocking_(pool, options_.max_blocking_calls),
        streams_(options_.max_streams) {}

  void Close(std::chrono::steady_clock::time_point deadline) {
    streams_.EndAll(base::UnavailableError("the daemon is stopping"));
    blocking_.Close(deadline);
  }

  grpc::ServerUnaryReactor* Delete(grpc::CallbackServerContext* context,
                                   const ::bimrpc::DeleteRequest* request,
                                   Empty* response) override {
    const auto disk = DiskOf(*context);
    base::Status status = disk.status();
    if (status.ok()) status = CheckKey(*request);
    if (!status.ok()) return Reply(context, status);
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    blocking_.Run<Empty>(
        reactor, response,
        [&manager = manager_, disk = *disk, name = request->name(),
         uuid = request->uuid()](Empty* /*made*/) {
          return manager.RemoveDirected(disk, name, uuid);
        });
    return reactor;
  }

  grpc::ServerUnaryReactor* Get(
      grpc::CallbackServerContext* context, const ::bimrpc::GetRequest* request,
      ::bimrpc::BackingImageResponse* response) override {
    return Reply(context, [&]() -> base::Status {
      BIM_ASSIGN_OR_RETURN(const std::string disk, DiskOf(*context));
      BIM_RETURN_IF_ERROR(CheckKey(*request));
      BIM_ASSIGN_OR_RETURN(
          const manager::DirectedStatus image,
          manager_.GetDirected(disk, request->name(), request->uuid()));
      ToProto(image, response);
      return base::OkStatus();
    }());
  }

  grpc::ServerUnaryReactor* List(grpc::CallbackServerContext* context,
                                 const Empty* /*request*/,
                                 ::bimrpc::ListResponse* response) override {
    return Reply(context, [&]() -> base::Status {
      BIM_ASSIGN_OR_RETURN(const std::string disk, DiskOf(*context));
      auto& map = *response->mutable_backing_images();
      // Of those that share a name, the last one.
      const auto add = [&map](const manager::DirectedStatus& image) {
        auto& entry = map[image.name];
        entry.Clear();
        ToProto(image, &entry);
      };
      return manager_.VisitDirected(disk, add);
    }());
  }

  grpc::ServerUnaryReactor* VersionGet(
      grpc::CallbackServerContext* context, const Empty* /*request*/,
      ::bimrpc::VersionResponse* response) override {
    response->set_version(meta::Version());
    response->set_gitcommit(meta::GitCommit());
    response->set_builddate(meta::BuildDate());
    response->set_backing_image_manager_api_version(meta::kLonghornApiVersion);
    response->set_backing_image_manager_api_min_version(
        meta::kLonghornApiMinVersion);
    return Reply(context, base::OkStatus());
  }

  grpc::ServerUnaryReactor* Sync(
      grpc::CallbackServerContext* context,
      const ::bimrpc::SyncRequest* request,
      ::bimrpc::BackingImageResponse* response) override {
    auto spec = ToDirected(request->has_spec(), request->spec());
    base::Status status = spec.status();
    if (status.ok()) {
      status = CheckPresent("from_address", request->from_address());
    }
    if (status.ok()) {
      status = http::ParseHostPort(request->from_address())
                   .status()
                   .WithContext("from_address");
    }
    if (!status.ok()) return Reply(context, status);
    spec->source.peers = {request->from_address()};
    return Direct(context, *std::move(spec), response);
  }

  grpc::ServerUnaryReactor* Fetch(
      grpc::CallbackServerContext* context,
      const ::bimrpc::FetchRequest* request,
      ::bimrpc::BackingImageResponse* response) override {
    auto spec = ToDirected(request->has_spec(), request->spec());
    if (!spec.ok()) return Reply(context, spec.status());
    if (const std::string& address = request->data_source_address();
        !address.empty()) {
      spec->claim_data_source =
          [&manager = manager_, address, disk = DiskOf(*context),
           key = store::ImageKey{spec->name, spec->uuid}]() -> base::Status {
        BIM_RETURN_IF_ERROR(disk.status());
        BIM_ASSIGN_OR_RETURN(const std::string uuid,
                             manager.DirectedDiskUuid(*disk));
        return ClaimDataSource(address, key, uuid);
      };
    }
    return Direct(context, *std::move(spec), response);
  }

  grpc::ServerUnaryReactor* Send(grpc::CallbackServerContext* context,
                                 const ::bimrpc::SendRequest* request,
                                 Empty* response) override {
    base::Status status = CheckKey(*request);
    if (status.ok()) status = CheckPresent("to_address", request->to_address());
    const auto disk = DiskOf(*context);
    if (status.ok()) status = disk.status();
    if (!status.ok()) return Reply(context, status);
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    blocking_.Run<Empty>(
        reactor, response,
        [&manager = manager_, disk = *disk, sent = *request](Empty*) {
          return manager.SendDirected(disk, sent.name(), sent.uuid(),
                                      sent.to_address());
        });
    return reactor;
  }

  grpc::ServerUnaryReactor* PrepareDownload(
      grpc::CallbackServerContext* context,
      const ::bimrpc::PrepareDownloadRequest* request,
      ::bimrpc::PrepareDownloadResponse* response) override {
    return Reply(context, [&]() -> base::Status {
      BIM_ASSIGN_OR_RETURN(const std::string disk, DiskOf(*context));
      BIM_RETURN_IF_ERROR(CheckKey(*request));
      BIM_ASSIGN_OR_RETURN(
          const manager::DirectedStatus image,
          manager_.GetDirected(disk, request->name(), request->uuid()));
      if (image.copy.state != manager::CopyState::kReady) {
        return base::FailedPreconditionError(
            "image '" + image.name + "' is " +
            std::string(manager::CopyStateName(image.copy.state)) +
            ": only a ready one can be downloaded");
      }
      if (options_.download_port == 0) {
        return base::UnimplementedError(
            "Longhorn's HTTP file service is off (longhorn.sync_listen)");
      }
      response->set_src_file_path(api::ValidUtf8(image.copy.file_path));
      response->set_address(http::JoinHostPort(options_.download_host.empty()
                                                   ? OwnHost(context->peer())
                                                   : options_.download_host,
                                               options_.download_port));
      return base::OkStatus();
    }());
  }

  grpc::ServerUnaryReactor* BackupCreate(
      grpc::CallbackServerContext* context,
      const ::bimrpc::BackupCreateRequest* /*request*/,
      Empty* /*response*/) override {
    return Reply(context, NoBackup());
  }

  grpc::ServerUnaryReactor* BackupStatus(
      grpc::CallbackServerContext* context,
      const ::bimrpc::BackupStatusRequest* /*request*/,
      ::bimrpc::BackupStatusResponse* /*response*/) override {
    return Reply(context, NoBackup());
  }

  grpc::ServerWriteReactor<Empty>* Watch(grpc::CallbackServerContext* context,
                                         const Empty* /*request*/) override {
    if (const auto disk = DiskOf(*context); !disk.ok()) {
      return new api::RefusedStream<Empty>(disk.status());
    }
    return api::PullStream<Empty>::Start(
        streams_, loop_, std::chrono::milliseconds(0),
        [&manager = manager_](std::function<void()> wake) {
          return manager.Subscribe(std::move(wake));
        },
        ChangeProducer(manager_));
  }

 private:
  static base::Status NoBackup() {
    return base::UnimplementedError(
        "backups of images are not supported yet by this manager");
  }

  grpc::ServerUnaryReactor* Direct(grpc::CallbackServerContext* context,
                                   manager::DirectedSpec spec,
                                   ::bimrpc::BackingImageResponse* response) {
    const auto disk = DiskOf(*context);
    if (!disk.ok()) return Reply(context, disk.status());
    spec.disk = *disk;
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    blocking_.Run<::bimrpc::BackingImageResponse>(
        reactor, response,
        [&manager = manager_, spec = std::move(spec)](
            ::bimrpc::BackingImageResponse* made) -> base::Status {
          BIM_ASSIGN_OR_RETURN(const manager::DirectedStatus image,
                               manager.Direct(spec));
          ToProto(image, made);
          return base::OkStatus();
        });
    return reactor;
  }

  const GrpcFace::Options options_;
  manager::Manager& manager_;
  exec::EventLoop& loop_;
  api::BlockingCalls blocking_;
  api::StreamSet streams_;
};

class GrpcFaceImpl final : public GrpcFace {
 public:
  GrpcFaceImpl(Options options, manager::Manager& manager,
               exec::EventLoop& loop, exec::WorkerPool& pool)
      : service_(std::move(options), manager, loop, pool) {}
  grpc::Service& service() override { return service_; }
  void Close(std::chrono::steady_clock::time_point deadline) override {
    service_.Close(deadline);
  }

 private:
  Service service_;
};

}  // namespace

std::unique_ptr<GrpcFace> GrpcFace::Make(Options options,
                                         manager::Manager& manager,
                                         exec::EventLoop& loop,
                                         exec::WorkerPool& pool) {
  return std::make_unique<GrpcFaceImpl>(std::move(options), manager, loop,
                                        pool);
}

}  // namespace bim::longhorn
