#include "pkg/api/node_server.h"

#include <grpcpp/ext/proto_server_reflection_plugin.h>
#include <grpcpp/grpcpp.h>
#include <grpcpp/health_check_service_interface.h>
#include <grpcpp/resource_quota.h>

#include <algorithm>
#include <deque>
#include <mutex>
#include <string_view>
#include <thread>
#include <utility>

#include "bim/v1/node.grpc.pb.h"
#include "grpc/health/v1/health.pb.h"
#include "pkg/api/acceptor.h"
#include "pkg/api/blocking_calls.h"
#include "pkg/api/convert.h"
#include "pkg/api/grpc_status.h"
#include "pkg/api/pull_stream.h"

namespace bim::api {
namespace {

constexpr uint32_t kDefaultPage = 100;
// Clients take messages of 4 MiB unless they ask for more.
constexpr size_t kMaxListBytes = 3 << 20;
constexpr size_t kEventBatch = 32;
constexpr std::chrono::milliseconds kVerifyInterval{200};
constexpr std::chrono::milliseconds kHandoverInterval{100};  // of a watch
constexpr std::chrono::milliseconds kLastAnswers{50};
constexpr std::chrono::milliseconds kMaxDrain{std::chrono::hours(1)};

// What the services share.
struct Shared {
  NodeServer::Options options;
  manager::Manager& manager;
  exec::EventLoop& loop;
  BlockingCalls blocking;
  StreamSet streams;
};

base::Result<std::string_view> Metadata(const grpc::ServerContextBase& context,
                                        const char* key) {
  const auto [first, last] = context.client_metadata().equal_range(key);
  if (first == last) return std::string_view();
  if (std::next(first) != last) {
    return base::InvalidArgumentError(std::string(key) +
                                      " is given more than once");
  }
  if (first->second.empty()) {
    return base::InvalidArgumentError(std::string(key) +
                                      ": expected a decimal number");
  }
  return std::string_view(first->second.data(), first->second.size());
}

// Whether a caller is served, by the versions that it states in the metadata.
base::Status Negotiate(const grpc::ServerContextBase& context,
                       const meta::VersionRange& ours) {
  BIM_ASSIGN_OR_RETURN(const std::string_view version,
                       Metadata(context, kApiVersionKey));
  BIM_ASSIGN_OR_RETURN(const std::string_view min_version,
                       Metadata(context, kApiMinVersionKey));
  BIM_ASSIGN_OR_RETURN(const auto stated, StatedVersions(version, min_version));
  return CheckVersions(stated, ours);
}

grpc::ServerUnaryReactor* Reply(grpc::CallbackServerContext* context,
                                const base::Status& status) {
  grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
  reactor->Finish(ToGrpc(status));
  return reactor;
}

// Answers at once with what `fill` (a function that returns a Status and does
// not block) makes of it, when the caller's versions fit.
template <typename Fill>
grpc::ServerUnaryReactor* AnswerNow(const Shared& shared,
                                    grpc::CallbackServerContext* context,
                                    Fill fill) {
  base::Status status = Negotiate(*context, shared.options.versions);
  if (status.ok()) status = fill();
  return Reply(context, status);
}

class VersionServiceImpl final : public v1::VersionService::CallbackService {
 public:
  explicit VersionServiceImpl(Shared& shared) : shared_(shared) {}

  grpc::ServerUnaryReactor* VersionGet(
      grpc::CallbackServerContext* context,
      const v1::VersionGetRequest* request,
      v1::VersionGetResponse* response) override {
    return AnswerNow(shared_, context, [&]() -> base::Status {
      BIM_ASSIGN_OR_RETURN(
          const auto stated,
          StatedVersions(request->api_version(), request->api_min_version()));
      BIM_RETURN_IF_ERROR(CheckVersions(stated, shared_.options.versions));
      response->set_version(meta::Version());
      response->set_git_commit(meta::GitCommit());
      response->set_build_date(meta::BuildDate());
      response->set_api_version(shared_.options.versions.max);
      response->set_api_min_version(shared_.options.versions.min);
      response->set_disk_format_version(meta::kDiskFormatVersion);
      response->set_disk_format_min_version(meta::kDiskFormatMinVersion);
      response->set_manager_id(shared_.options.manager_id);
      response->set_data_endpoint(shared_.options.data_endpoint);
      return base::OkStatus();
    });
  }

 private:
  Shared& shared_;
};

class DiskServiceImpl final : public v1::DiskService::CallbackService {
 public:
  explicit DiskServiceImpl(Shared& shared) : shared_(shared) {}

  grpc::ServerUnaryReactor* List(grpc::CallbackServerContext* context,
                                 const v1::ListDisksRequest* /*request*/,
                                 v1::ListDisksResponse* response) override {
    return AnswerNow(shared_, context, [&] {
      for (const manager::DiskStatus& disk : shared_.manager.ListDisks()) {
        ToProto(disk, response->add_disks());
      }
      return base::OkStatus();
    });
  }

  grpc::ServerUnaryReactor* Add(grpc::CallbackServerContext* context,
                                const v1::AddDiskRequest* request,
                                v1::AddDiskResponse* response) override {
    base::Status status = Negotiate(*context, shared_.options.versions);
    if (status.ok()) status = CheckPresent("path", request->path());
    if (!status.ok()) return Reply(context, status);
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    shared_.blocking.Run<v1::AddDiskResponse>(
        reactor, response,
        [&manager = shared_.manager, path = request->path(),
         uuid = request->uuid(),
         init = request->init()](v1::AddDiskResponse* made) -> base::Status {
          BIM_ASSIGN_OR_RETURN(const manager::DiskStatus disk,
                               manager.AddDisk(path, uuid, init));
          ToProto(disk, made->mutable_disk());
          return base::OkStatus();
        });
    return reactor;
  }

  grpc::ServerUnaryReactor* Remove(grpc::CallbackServerContext* context,
                                   const v1::RemoveDiskRequest* request,
                                   v1::RemoveDiskResponse* response) override {
    base::Status status = Negotiate(*context, shared_.options.versions);
    if (status.ok()) status = CheckPresent("disk", request->disk());
    if (!status.ok()) return Reply(context, status);
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    shared_.blocking.Run<v1::RemoveDiskResponse>(
        reactor, response,
        [&manager = shared_.manager, disk = request->disk(),
         force = request->force()](v1::RemoveDiskResponse* /*made*/) {
          return manager.RemoveDisk(disk, force);
        });
    return reactor;
  }

  grpc::ServerUnaryReactor* Adopt(grpc::CallbackServerContext* context,
                                  const v1::AdoptDiskRequest* request,
                                  v1::AdoptDiskResponse* response) override {
    base::Status status = Negotiate(*context, shared_.options.versions);
    if (status.ok()) status = CheckPresent("disk", request->disk());
    if (!status.ok()) return Reply(context, status);
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    shared_.blocking.Run<v1::AdoptDiskResponse>(
        reactor, response,
        [&manager = shared_.manager, disk = request->disk(),
         dry_run =
             request->dry_run()](v1::AdoptDiskResponse* made) -> base::Status {
          BIM_ASSIGN_OR_RETURN(const auto images, manager.Adopt(disk, dry_run));
          for (const manager::AdoptedImage& image : images) {
            ToProto(image, made->add_images());
          }
          return base::OkStatus();
        });
    return reactor;
  }

 private:
  Shared& shared_;
};

// The events of one Watch, in small batches.
class EventProducer {
 public:
  EventProducer(manager::Manager& manager, std::string_view resume_token)
      : manager_(manager), position_(manager.PositionOf(resume_token)) {}

  Produced operator()(v1::WatchResponse* response) {
    if (batch_.empty()) {
      std::vector<manager::Event> events =
          manager_.NextEvents(position_, kEventBatch);
      std::move(events.begin(), events.end(), std::back_inserter(batch_));
    }
    if (batch_.empty()) return {Produced::Kind::kNothing};
    ToProto(batch_.front(), response);
    batch_.pop_front();
    return {Produced::Kind::kMessage};
  }

 private:
  manager::Manager& manager_;
  manager::WatchPosition position_;
  std::deque<manager::Event> batch_;
};

// The progress of one verification, when it changed.
class VerifyProducer {
 public:
  VerifyProducer(manager::Manager& manager, uint64_t id,
                 const v1::VerifyRequest& request)
      : manager_(manager),
        id_(id),
        name_(request.name()),
        uuid_(request.uuid()) {}

  Produced operator()(v1::VerifyResponse* response) {
    base::Result<manager::VerifyProgress> progress =
        manager_.VerifyProgressOf(id_);
    if (!progress.ok()) return {Produced::Kind::kEnd, progress.status()};
    v1::VerifyResponse now;
    ToProto(*progress, &now);
    if (!progress->done) {
      const std::pair found{progress->verified_bytes, progress->total_bytes};
      if (sent_ == found) return {Produced::Kind::kNothing};
      sent_ = found;
      response->Swap(&now);
      return {Produced::Kind::kMessage};
    }
    // The image may have been removed meanwhile: then without it.
    if (base::Result<manager::ImageStatus> image = manager_.Get(name_, uuid_);
        image.ok()) {
      ToProto(*image, now.mutable_image());
    }
    response->Swap(&now);
    return {Produced::Kind::kLast};
  }

 private:
  manager::Manager& manager_;
  const uint64_t id_;
  const std::string name_;
  const std::string uuid_;
  std::optional<std::pair<uint64_t, uint64_t>> sent_;
};

class ImageServiceImpl final : public v1::ImageService::CallbackService {
 public:
  explicit ImageServiceImpl(Shared& shared) : shared_(shared) {}

  grpc::ServerUnaryReactor* Ensure(grpc::CallbackServerContext* context,
                                   const v1::EnsureRequest* request,
                                   v1::EnsureResponse* response) override {
    base::Status status = Negotiate(*context, shared_.options.versions);
    if (!status.ok()) return Reply(context, status);
    base::Result<manager::ImageSpec> spec = ToSpec(*request);
    if (!spec.ok()) return Reply(context, spec.status());
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    shared_.blocking.Run<v1::EnsureResponse>(
        reactor, response,
        [&manager = shared_.manager,
         spec = *std::move(spec)](v1::EnsureResponse* made) -> base::Status {
          BIM_ASSIGN_OR_RETURN(const manager::Manager::Ensured ensured,
                               manager.Ensure(spec));
          ToProto(ensured.image, made->mutable_image());
          made->set_created(ensured.created);
          return base::OkStatus();
        });
    return reactor;
  }

  grpc::ServerUnaryReactor* Get(grpc::CallbackServerContext* context,
                                const v1::GetRequest* request,
                                v1::GetResponse* response) override {
    return AnswerNow(shared_, context, [&]() -> base::Status {
      BIM_RETURN_IF_ERROR(CheckPresent("name", request->name()));
      BIM_ASSIGN_OR_RETURN(
          const manager::ImageStatus image,
          shared_.manager.Get(request->name(), request->uuid()));
      ToProto(image, response->mutable_image());
      return base::OkStatus();
    });
  }

  grpc::ServerUnaryReactor* List(grpc::CallbackServerContext* context,
                                 const v1::ListRequest* request,
                                 v1::ListResponse* response) override {
    return AnswerNow(shared_, context,
                     [&] { return FillPage(*request, response); });
  }

  grpc::ServerWriteReactor<v1::WatchResponse>* Watch(
      grpc::CallbackServerContext* context,
      const v1::WatchRequest* request) override {
    if (base::Status status = Negotiate(*context, shared_.options.versions);
        !status.ok()) {
      return new RefusedStream<v1::WatchResponse>(status);
    }
    return StartStream<v1::WatchResponse>(
        std::chrono::milliseconds(0),
        EventProducer(shared_.manager, request->resume_token()));
  }

  grpc::ServerUnaryReactor* Remove(grpc::CallbackServerContext* context,
                                   const v1::RemoveRequest* request,
                                   v1::RemoveResponse* response) override {
    base::Status status = Negotiate(*context, shared_.options.versions);
    if (status.ok()) status = CheckPresent("name", request->name());
    if (!status.ok()) return Reply(context, status);
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    shared_.blocking.Run<v1::RemoveResponse>(
        reactor, response,
        [&manager = shared_.manager, name = request->name(),
         uuid = request->uuid(),
         force = request->force()](v1::RemoveResponse* /*made*/) {
          return manager.Remove(name, uuid, force);
        });
    return reactor;
  }

  grpc::ServerWriteReactor<v1::VerifyResponse>* Verify(
      grpc::CallbackServerContext* context,
      const v1::VerifyRequest* request) override {
    base::Status status = Negotiate(*context, shared_.options.versions);
    if (status.ok()) status = CheckRequest(*request);
    if (!status.ok()) return new RefusedStream<v1::VerifyResponse>(status);
    const base::Result<uint64_t> id = shared_.manager.StartVerify(
        request->name(), request->uuid(),
        {request->disks().begin(), request->disks().end()}, request->repair());
    if (!id.ok()) return new RefusedStream<v1::VerifyResponse>(id.status());
    return StartStream<v1::VerifyResponse>(
        kVerifyInterval, VerifyProducer(shared_.manager, *id, *request));
  }

 private:
  template <typename Message, typename Producer>
  grpc::ServerWriteReactor<Message>* StartStream(
      std::chrono::milliseconds interval, Producer producer) {
    return PullStream<Message>::Start(
        shared_.streams, shared_.loop, interval,
        [&manager = shared_.manager](std::function<void()> wake) {
          return manager.Subscribe(std::move(wake));
        },
        std::move(producer));
  }

  // Halves the page until it fits into a message: page_size is a maximum.
  base::Status FillPage(const v1::ListRequest& request,
                        v1::ListResponse* response) {
    uint32_t page_size = request.page_size();
    if (page_size == 0) page_size = kDefaultPage;
    while (true) {
      BIM_ASSIGN_OR_RETURN(
          const manager::Manager::Page page,
          shared_.manager.List(page_size, request.page_token()));
      for (const manager::ImageStatus& image : page.images) {
        ToProto(image, response->add_images());
      }
      response->set_next_page_token(page.next_page_token);
      if (page_size == 1 || response->ByteSizeLong() <= kMaxListBytes) {
        return base::OkStatus();
      }
      response->Clear();
      page_size /= 2;
    }
  }

  Shared& shared_;
};

class LimitServiceImpl final : public v1::LimitService::CallbackService {
 public:
  explicit LimitServiceImpl(Shared& shared) : shared_(shared) {}

  grpc::ServerUnaryReactor* Get(grpc::CallbackServerContext* context,
                                const v1::GetLimitsRequest* /*request*/,
                                v1::GetLimitsResponse* response) override {
    return AnswerNow(shared_, context, [&] {
      ToProto(shared_.manager.GetLimits(), response->mutable_limits());
      return base::OkStatus();
    });
  }

  grpc::ServerUnaryReactor* Set(grpc::CallbackServerContext* context,
                                const v1::SetLimitsRequest* request,
                                v1::SetLimitsResponse* response) override {
    return AnswerNow(shared_, context, [&]() -> base::Status {
      std::lock_guard lock(mutex_);
      manager::Limits limits = shared_.manager.GetLimits();
      Apply(request->limits(), limits);
      BIM_RETURN_IF_ERROR(shared_.manager.SetLimits(limits));
      ToProto(limits, response->mutable_limits());
      return base::OkStatus();
    });
  }

 private:
  Shared& shared_;
  // Of two callers that set different fields neither undoes the other's.
  std::mutex mutex_;
};

// Wakes a stream from time to time, whatever happens.
class Ticker final : public manager::Subscription,
                     public std::enable_shared_from_this<Ticker> {
 public:
  static std::unique_ptr<manager::Subscription> Start(
      exec::EventLoop& loop, std::function<void()> wake) {
    auto ticker = std::make_shared<Ticker>(loop, std::move(wake));
    ticker->Arm();
    return std::make_unique<Handle>(std::move(ticker));
  }
  Ticker(exec::EventLoop& loop, std::function<void()> wake)
      : wake_(std::move(wake)), timer_(loop.context()) {}

 private:
  class Handle final : public manager::Subscription {
   public:
    explicit Handle(std::shared_ptr<Ticker> ticker)
        : ticker_(std::move(ticker)) {}
    ~Handle() override { ticker_->End(); }

   private:
    std::shared_ptr<Ticker> ticker_;
  };

  void End() {
    std::lock_guard lock(mutex_);
    ended_ = true;
    timer_.cancel();
  }
  void Arm() {
    std::lock_guard lock(mutex_);
    if (ended_) return;
    timer_.expires_after(kHandoverInterval);
    timer_.async_wait(
        [self = shared_from_this()](const boost::system::error_code&) {
          {
            std::lock_guard waking(self->mutex_);
            if (self->ended_) return;
            self->wake_();
          }
          self->Arm();
        });
  }

  const std::function<void()> wake_;
  std::mutex mutex_;
  bool ended_ = false;
  boost::asio::steady_timer timer_;
};

// What is going on with a hand-over, when it changed.
class HandoverProducer {
 public:
  explicit HandoverProducer(handover::Control& control) : control_(control) {}

  Produced operator()(v1::WatchHandoverResponse* response) {
    v1::WatchHandoverResponse now;
    ToProto(control_.Now(), now.mutable_handover());
    std::string text = now.SerializeAsString();
    if (text == sent_) return {Produced::Kind::kNothing};
    sent_ = std::move(text);
    response->Swap(&now);
    return {Produced::Kind::kMessage};
  }

 private:
  handover::Control& control_;
  std::optional<std::string> sent_;
};

class HandoverServiceImpl final : public v1::HandoverService::CallbackService {
 public:
  explicit HandoverServiceImpl(Shared& shared) : shared_(shared) {}

  grpc::ServerUnaryReactor* Begin(
      grpc::CallbackServerContext* context,
      const v1::BeginHandoverRequest* request,
      v1::BeginHandoverResponse* response) override {
    return Decide(context, response,
                  [request = *request](handover::Control& on) {
                    return on.Begin(request.automatic(), request.dry_run());
                  });
  }
  grpc::ServerUnaryReactor* Confirm(
      grpc::CallbackServerContext* context,
      const v1::ConfirmHandoverRequest* request,
      v1::ConfirmHandoverResponse* response) override {
    return Decide(context, response,
                  [request = *request](handover::Control& on) {
                    return on.Confirm(request.force(), request.dry_run());
                  });
  }
  grpc::ServerUnaryReactor* Rollback(
      grpc::CallbackServerContext* context,
      const v1::RollbackHandoverRequest* request,
      v1::RollbackHandoverResponse* response) override {
    return Decide(context, response,
                  [dry_run = request->dry_run()](handover::Control& on) {
                    return on.Rollback(dry_run);
                  });
  }
  grpc::ServerUnaryReactor* Status(
      grpc::CallbackServerContext* context,
      const v1::HandoverStatusRequest* /*request*/,
      v1::HandoverStatusResponse* response) override {
    return Decide(context, response,
                  [](handover::Control& /*on*/) { return base::OkStatus(); });
  }
  grpc::ServerWriteReactor<v1::WatchHandoverResponse>* Watch(
      grpc::CallbackServerContext* context,
      const v1::WatchHandoverRequest* /*request*/) override {
    if (base::Status status = Check(*context); !status.ok()) {
      return new RefusedStream<v1::WatchHandoverResponse>(status);
    }
    return PullStream<v1::WatchHandoverResponse>::Start(
        shared_.streams, shared_.loop, std::chrono::milliseconds(0),
        [&loop = shared_.loop](std::function<void()> wake) {
          return Ticker::Start(loop, std::move(wake));
        },
        HandoverProducer(*shared_.options.hand_over));
  }
  grpc::ServerUnaryReactor* History(
      grpc::CallbackServerContext* context,
      const v1::HandoverHistoryRequest* request,
      v1::HandoverHistoryResponse* response) override {
    if (base::Status status = Check(*context); !status.ok()) {
      return Reply(context, status);
    }
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    shared_.blocking.Run<v1::HandoverHistoryResponse>(
        reactor, response,
        [&control = *shared_.options.hand_over,
         limit = request->limit()](v1::HandoverHistoryResponse* made) {
          const auto events = control.History();
          const size_t first =
              limit == 0 || limit >= events.size() ? 0 : events.size() - limit;
          for (size_t i = first; i < events.size(); ++i) {
            ToProto(events[i], made->add_events());
          }
          return base::OkStatus();
        });
    return reactor;
  }

  grpc::ServerUnaryReactor* Drain(grpc::CallbackServerContext* context,
                                  const v1::DrainRequest* request,
                                  v1::DrainResponse* response) override {
    if (base::Status status = Check(*context); !status.ok()) {
      return Reply(context, status);
    }
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    shared_.blocking.Run<v1::DrainResponse>(
        reactor, response,
        [&control = *shared_.options.hand_over,
         request = *request](v1::DrainResponse* made) -> base::Status {
          if (request.cancel() && !request.dry_run()) {
            BIM_RETURN_IF_ERROR(control.CancelDrain());
          } else if (!request.cancel() && !request.dry_run()) {
            BIM_RETURN_IF_ERROR(control.Drain(std::chrono::milliseconds(
                std::min<uint64_t>(request.timeout_ms(), kMaxDrain.count()))));
          }
          const handover::Control::Work work = control.Running();
          made->set_draining(work.draining);
          for (const std::string& line : work.running) made->add_running(line);
          return base::OkStatus();
        });
    return reactor;
  }

 private:
  base::Status Check(const grpc::CallbackServerContext& context) const {
    BIM_RETURN_IF_ERROR(Negotiate(context, shared_.options.versions));
    if (shared_.options.hand_over == nullptr) {
      return base::FailedPreconditionError("this daemon hands nothing over");
    }
    return base::OkStatus();
  }

  // On a worker; answers with what the hand-over is then.
  template <typename Response, typename Act>
  grpc::ServerUnaryReactor* Decide(grpc::CallbackServerContext* context,
                                   Response* response, Act act) {
    if (base::Status status = Check(*context); !status.ok()) {
      return Reply(context, status);
    }
    grpc::ServerUnaryReactor* reactor = context->DefaultReactor();
    shared_.blocking.Run<Response>(
        reactor, response,
        [&control = *shared_.options.hand_over,
         act = std::move(act)](Response* made) -> base::Status {
          BIM_RETURN_IF_ERROR(act(control));
          ToProto(control.Now(), made->mutable_handover());
          return base::OkStatus();
        });
    return reactor;
  }

  Shared& shared_;
};

class NodeServerImpl final : public NodeServer {
 public:
  NodeServerImpl(Options options, manager::Manager& manager,
                 exec::EventLoop& loop, exec::WorkerPool& pool)
      : shared_{.options = options,
                .manager = manager,
                .loop = loop,
                .blocking = BlockingCalls(pool, options.max_blocking_calls),
                .streams = StreamSet(options.max_streams)} {}

  ~NodeServerImpl() override { Shutdown(std::chrono::milliseconds(0)); }

  base::Status Serve(std::vector<base::UniqueFd> listeners) {
    const Options& options = shared_.options;
    // Both are switches of the whole process.
    grpc::EnableDefaultHealthCheckService(true);
    grpc::reflection::InitProtoReflectionServerBuilderPlugin();
    // Links the descriptor, without which reflection knows the service's name
    // only and clients that list its methods fail.
    (void)grpc::health::v1::HealthCheckRequest::descriptor();

    grpc::ServerBuilder builder;
    builder.SetMaxReceiveMessageSize(options.max_message_bytes);
    // We open all listening sockets; should gRPC ever open one, then alone.
    builder.AddChannelArgument(GRPC_ARG_ALLOW_REUSEPORT, 0);
    builder.AddChannelArgument(GRPC_ARG_MAX_CONCURRENT_STREAMS, 100);
    builder.AddChannelArgument(GRPC_ARG_MAX_METADATA_SIZE, 16 << 10);
    builder.AddChannelArgument(GRPC_ARG_SERVER_HANDSHAKE_TIMEOUT_MS, 10'000);
    // Finds dead peers; peers may ping every 10 s, also without a call.
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIME_MS, 60'000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 20'000);
    // Who asks nothing for so long connects again when it does.
    builder.AddChannelArgument(GRPC_ARG_MAX_CONNECTION_IDLE_MS, 600'000);
    builder.AddChannelArgument(GRPC_ARG_KEEPALIVE_PERMIT_WITHOUT_CALLS, 1);
    builder.AddChannelArgument(
        GRPC_ARG_HTTP2_MIN_RECV_PING_INTERVAL_WITHOUT_DATA_MS, 10'000);
    // Only reflection is a synchronous service: an open stream of it holds a
    // thread.
    builder.SetSyncServerOption(grpc::ServerBuilder::NUM_CQS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::MIN_POLLERS, 1);
    builder.SetSyncServerOption(grpc::ServerBuilder::MAX_POLLERS, 1);
    builder.SetResourceQuota(
        grpc::ResourceQuota("bim-api").Resize(64 << 20).SetMaxThreads(16));
    builder.RegisterService(&version_);
    builder.RegisterService(&disks_);
    builder.RegisterService(&images_);
    builder.RegisterService(&limits_);
    builder.RegisterService(&handovers_);
    for (const Options::Service& more : options.services) {
      builder.RegisterService(more.service);
    }
    connections_ = builder.experimental().AddExternalConnectionAcceptor(
        grpc::ServerBuilder::experimental_type::ExternalConnectionType::FROM_FD,
        grpc::InsecureServerCredentials());
    server_ = builder.BuildAndStart();
    if (server_ == nullptr) {
      return base::InternalError("gRPC does not start a server");
    }
    acceptor_ = std::make_unique<Acceptor>(
        shared_.loop, std::move(listeners),
        [this](base::UniqueFd fd) { Take(std::move(fd)); },
        Acceptor::Options{.max_connections = options.max_connections});
    return base::OkStatus();
  }

  std::vector<base::UniqueFd> StopAccepting() override {
    if (acceptor_ == nullptr) return {};
    return acceptor_->Stop();
  }

  void Shutdown(std::chrono::milliseconds grace) override {
    if (server_ == nullptr) return;
    const auto start = std::chrono::steady_clock::now();
    // First of all: gRPC 1.51 forgets descriptors that come after Shutdown.
    (void)StopAccepting();
    if (auto* health = server_->GetHealthCheckService(); health != nullptr) {
      health->SetServingStatus(false);
    }
    shared_.streams.EndAll(base::UnavailableError("the daemon is stopping"));
    shared_.blocking.Close(start + grace);
    for (const Options::Service& more : shared_.options.services) {
      more.close(start + grace);
    }
    // All calls are answered: the last answers get a moment to leave. Then
    // callers are told to go on elsewhere (gRPC's own way to say so comes when
    // it takes no calls any more, too late), and connections end, so that a
    // call that comes in just now is UNAVAILABLE, and its caller goes on
    // elsewhere (at the successor, maybe): gRPC 1.51 would cancel it, or never
    // answer.
    std::this_thread::sleep_for(kLastAnswers);
    acceptor_->SendGoAway(Acceptor::kAnyStream);
    std::this_thread::sleep_for(2 * kLastAnswers);
    acceptor_->SendGoAway(0);
    acceptor_->EndAccepted();
    server_->Shutdown(std::chrono::system_clock::now() + kLastAnswers);
    server_->Wait();
    server_.reset();
    connections_.reset();
    acceptor_.reset();
  }

 private:
  // On the loop.
  void Take(base::UniqueFd fd) {
    grpc::experimental::ExternalConnectionAcceptor::NewConnectionParameters
        connection;
    connection.listener_fd = -1;
    connection.fd = fd.Release();
    connections_->HandleNewConnection(&connection);
  }

  Shared shared_;
  VersionServiceImpl version_{shared_};
  DiskServiceImpl disks_{shared_};
  ImageServiceImpl images_{shared_};
  LimitServiceImpl limits_{shared_};
  HandoverServiceImpl handovers_{shared_};
  std::unique_ptr<grpc::experimental::ExternalConnectionAcceptor> connections_;
  std::unique_ptr<grpc::Server> server_;
  std::unique_ptr<Acceptor> acceptor_;
};

}  // namespace

base::Result<std::unique_ptr<NodeServer>> NodeServer::Start(
    Options options, manager::Manager& manager, exec::EventLoop& loop,
    exec::WorkerPool& pool, std::vector<base::UniqueFd> listeners) {
  auto server =
      std::make_unique<NodeServerImpl>(std::move(options), manager, loop, pool);
  BIM_RETURN_IF_ERROR(server->Serve(std::move(listeners)));
  return std::unique_ptr<NodeServer>(std::move(server));
}

}  // namespace bim::api
