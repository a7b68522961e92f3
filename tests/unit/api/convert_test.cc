#include "pkg/api/convert.h"

#include <gtest/gtest.h>

#include <string>

namespace bim::api {
namespace {

using std::chrono::nanoseconds;
using std::chrono::system_clock;

v1::EnsureRequest GoodRequest() {
  v1::EnsureRequest request;
  request.mutable_spec()->set_name("debian");
  request.mutable_spec()->mutable_source()->set_url("https://host/a.qcow2");
  return request;
}

TEST(ToSpec, TakesTheLeast) {
  const auto spec = ToSpec(GoodRequest());
  ASSERT_TRUE(spec.ok());
  EXPECT_EQ(spec->name, "debian");
  EXPECT_EQ(spec->uuid, "");
  EXPECT_EQ(spec->source.url, "https://host/a.qcow2");
  EXPECT_EQ(spec->disks, std::vector<std::string>{"all"});
  EXPECT_FALSE(spec->all_disks);
  EXPECT_FALSE(spec->sha512.has_value());
  EXPECT_FALSE(spec->sha256.has_value());
  EXPECT_EQ(spec->size, 0u);
}

TEST(ToSpec, TakesEverything) {
  v1::EnsureRequest request = GoodRequest();
  v1::ImageSpec* proto = request.mutable_spec();
  proto->set_uuid("u1");
  proto->mutable_source()->set_credential("mirror");
  proto->set_sha512(std::string(128, 'A'));
  proto->set_sha256(std::string(64, 'b'));
  proto->add_disks("/disks/1");
  proto->add_disks("all");  // for the manager to refuse
  proto->set_size(1024);
  const auto spec = ToSpec(request);
  ASSERT_TRUE(spec.ok());
  EXPECT_EQ(spec->uuid, "u1");
  EXPECT_EQ(spec->source.credential, "mirror");
  EXPECT_EQ(spec->sha512->Hex(), std::string(128, 'a'));
  EXPECT_EQ(spec->sha256->Hex(), std::string(64, 'b'));
  EXPECT_EQ(spec->disks, (std::vector<std::string>{"/disks/1", "all"}));
  EXPECT_EQ(spec->size, 1024u);
}

TEST(ToSpec, NamesWhatIsMissingOrWrong) {
  const auto message = [](const v1::EnsureRequest& request) {
    const auto spec = ToSpec(request);
    EXPECT_EQ(spec.status().code(), base::Code::kInvalidArgument);
    return spec.status().message();
  };
  EXPECT_EQ(message({}), "spec is missing");
  v1::EnsureRequest request = GoodRequest();
  request.mutable_spec()->clear_name();
  EXPECT_EQ(message(request), "spec.name is missing");
  request = GoodRequest();
  const std::string no_source =
      "source.url, source.peers and source.upload are missing: expected "
      "http://, https:// or file://, other daemons' host:port, or an upload";
  request.mutable_spec()->clear_source();
  EXPECT_EQ(message(request), no_source);
  request.mutable_spec()->mutable_source()->set_credential("x");
  EXPECT_EQ(message(request), no_source);
  request = GoodRequest();
  request.mutable_spec()->set_sha512("ab");
  EXPECT_TRUE(message(request).starts_with("spec.sha512: "));
  request = GoodRequest();
  request.mutable_spec()->set_sha512(std::string(127, 'a') + "g");
  EXPECT_TRUE(message(request).starts_with("spec.sha512: "));
  request = GoodRequest();
  request.mutable_spec()->set_sha256(std::string(128, 'a'));
  EXPECT_TRUE(message(request).starts_with("spec.sha256: "));
  request = GoodRequest();
  request.mutable_spec()->add_disks("");
  EXPECT_TRUE(message(request).starts_with("spec.disks holds an empty string"));
}

TEST(ToSpec, TakesPeersAndUploads) {
  v1::EnsureRequest request = GoodRequest();
  v1::Source* source = request.mutable_spec()->mutable_source();
  source->add_peers("10.0.0.1:9500");
  source->add_peers("[fd00::1]:9500");
  source->add_peers("node-2.example:9500");
  auto spec = ToSpec(request);
  ASSERT_TRUE(spec.ok()) << spec.status().ToString();
  EXPECT_EQ(spec->source.peers,
            (std::vector<std::string>{"10.0.0.1:9500", "[fd00::1]:9500",
                                      "node-2.example:9500"}));
  EXPECT_FALSE(spec->source.upload);

  source->clear_url();
  EXPECT_EQ(ToSpec(request).status().message(),
            "spec.uuid is missing: with source.peers alone it says which image "
            "is meant");
  request.mutable_spec()->set_uuid("u");
  EXPECT_TRUE(ToSpec(request).ok());
  source->set_credential("c");
  EXPECT_TRUE(ToSpec(request).status().message().starts_with(
      "source.credential is for a source.url"));

  source->Clear();
  source->set_upload(true);
  spec = ToSpec(request);
  ASSERT_TRUE(spec.ok());
  EXPECT_TRUE(spec->source.upload);
  const auto refused = [&](const auto& change) {
    v1::EnsureRequest changed = request;
    change(*changed.mutable_spec()->mutable_source());
    const base::Status status = ToSpec(changed).status();
    EXPECT_EQ(status.code(), base::Code::kInvalidArgument);
    EXPECT_TRUE(status.message().starts_with("source.upload excludes "))
        << status.message();
  };
  refused([](v1::Source& s) { s.set_url("http://h/a"); });
  refused([](v1::Source& s) { s.set_credential("c"); });
  refused([](v1::Source& s) { s.add_peers("h:1"); });
}

TEST(ToSpec, JudgesPeers) {
  const auto with = [](const std::vector<std::string>& peers) {
    v1::EnsureRequest request = GoodRequest();
    for (const std::string& peer : peers) {
      request.mutable_spec()->mutable_source()->add_peers(peer);
    }
    return ToSpec(request).status();
  };
  for (const char* peer :
       {"", "h", "h:", ":9500", "h:0", "h:65536", "unix:/run/bim.sock",
        "http://h:9500", "::1:9500", "[]:9500", "h?x:1", "h#x:1", "a b:1",
        "u@h:1", "h,i:1"}) {
    const base::Status status = with({peer});
    EXPECT_EQ(status.code(), base::Code::kInvalidArgument) << peer;
    EXPECT_TRUE(status.message().starts_with("source.peers: ")) << peer;
  }
  EXPECT_EQ(with({"h:1", "h:2", "h:1"}).message(),
            "source.peers: expected each peer once, found h:1 twice");
  EXPECT_FALSE(with({"h:1", "h:01"}).ok());
  std::vector<std::string> peers;
  for (int i = 1; i <= 64; ++i) peers.push_back("h:" + std::to_string(i));
  EXPECT_TRUE(with(peers).ok());
  peers.push_back("h:65");
  EXPECT_EQ(with(peers).message(),
            "source.peers: expected at most 64, found 65");
}

TEST(Limits, GoBothWays) {
  manager::Limits limits{.download_rate = 1 << 20,
                         .peer_rate = 2 << 20,
                         .background_read_rate = 3 << 20,
                         .transfers = 5,
                         .transfers_per_disk = 6};
  v1::Limits proto;
  ToProto(limits, &proto);
  manager::Limits back;
  Apply(proto, back);
  EXPECT_EQ(back, limits);
  Apply(v1::Limits(), back);
  EXPECT_EQ(back, limits);
  proto.Clear();
  proto.set_download_rate(0);
  proto.set_transfers(7);
  Apply(proto, back);
  limits.download_rate = 0;
  limits.transfers = 7;
  EXPECT_EQ(back, limits);
}

TEST(CheckRequest, Verify) {
  v1::VerifyRequest request;
  EXPECT_EQ(CheckRequest(request).message(), "name is missing");
  request.set_name("a");
  EXPECT_TRUE(CheckRequest(request).ok());
  request.add_disks("/d");
  EXPECT_TRUE(CheckRequest(request).ok());
  request.add_disks("");
  EXPECT_EQ(CheckRequest(request).code(), base::Code::kInvalidArgument);
}

TEST(ToProto, Spec) {
  manager::ImageSpec spec;
  spec.name = "a";
  spec.uuid = "u";
  spec.source = {.url = "https://h/x", .credential = "cred"};
  spec.sha512 = *base::Digest::FromHex(base::DigestAlgorithm::kSha512,
                                       std::string(128, 'c'));
  spec.sha256 = *base::Digest::FromHex(base::DigestAlgorithm::kSha256,
                                       std::string(64, 'd'));
  spec.disks = {"d1", "d2"};
  spec.size = 512;
  v1::ImageSpec proto;
  ToProto(spec, &proto);
  EXPECT_EQ(proto.name(), "a");
  EXPECT_EQ(proto.uuid(), "u");
  EXPECT_EQ(proto.source().url(), "https://h/x");
  EXPECT_EQ(proto.source().credential(), "cred");
  EXPECT_EQ(proto.sha512(), std::string(128, 'c'));
  EXPECT_EQ(proto.sha256(), std::string(64, 'd'));
  ASSERT_EQ(proto.disks_size(), 2);
  EXPECT_EQ(proto.disks(1), "d2");
  EXPECT_EQ(proto.size(), 512u);
  spec = {};
  spec.all_disks = true;
  ToProto(spec, &proto);  // nothing of before is left
  ASSERT_EQ(proto.disks_size(), 1);
  EXPECT_EQ(proto.disks(0), "all");
  EXPECT_EQ(proto.sha512(), "");
  EXPECT_FALSE(proto.has_source());
  spec.source.peers = {"a:1", "b:2"};
  ToProto(spec, &proto);
  ASSERT_EQ(proto.source().peers_size(), 2);
  EXPECT_EQ(proto.source().peers(1), "b:2");
  EXPECT_FALSE(proto.source().upload());
  spec.source = {.upload = true};
  ToProto(spec, &proto);
  EXPECT_TRUE(proto.source().upload());
  EXPECT_EQ(proto.source().peers_size(), 0);
}

TEST(ToProto, Copy) {
  manager::CopyStatus copy;
  copy.disk_uuid = "d1";
  copy.disk_path = "/d/1";
  copy.state = manager::CopyState::kInProgress;
  copy.message = "m";
  copy.progress = 42;
  copy.processed_bytes = 1000;
  copy.real_size = 512;
  copy.file_path = "/d/1/f";
  copy.next_attempt = system_clock::time_point(std::chrono::seconds(5));
  copy.attempts = 3;
  copy.verify = manager::VerifyState::kRunning;
  copy.verify_progress = 9;
  copy.verified_at = system_clock::time_point(std::chrono::milliseconds(1500));
  copy.origin = "reflink";
  copy.wire_bytes = 11;
  copy.reused_bytes = 12;
  copy.encoding = "xz";
  copy.encoded_size = 13;
  copy.sha512_pending = true;
  v1::Copy proto;
  ToProto(copy, &proto);
  EXPECT_EQ(proto.disk_uuid(), "d1");
  EXPECT_EQ(proto.disk_path(), "/d/1");
  EXPECT_EQ(proto.state(), "in-progress");
  EXPECT_EQ(proto.message(), "m");
  EXPECT_EQ(proto.progress(), 42u);
  EXPECT_EQ(proto.processed_bytes(), 1000u);
  EXPECT_EQ(proto.real_size(), 512u);
  EXPECT_EQ(proto.file_path(), "/d/1/f");
  EXPECT_EQ(proto.next_attempt().seconds(), 5);
  EXPECT_EQ(proto.attempts(), 3u);
  EXPECT_EQ(proto.verification(), "running");
  EXPECT_EQ(proto.verification_progress(), 9u);
  EXPECT_EQ(proto.verified_at().seconds(), 1);
  EXPECT_EQ(proto.verified_at().nanos(), 500'000'000);
  EXPECT_EQ(proto.origin(), "reflink");
  EXPECT_EQ(proto.wire_bytes(), 11u);
  EXPECT_EQ(proto.reused_bytes(), 12u);
  EXPECT_EQ(proto.encoding(), "xz");
  EXPECT_EQ(proto.encoded_size(), 13u);
  EXPECT_TRUE(proto.sha512_pending());
  ToProto(manager::CopyStatus(), &proto);
  EXPECT_FALSE(proto.has_next_attempt());
  EXPECT_FALSE(proto.has_verified_at());
  EXPECT_EQ(proto.verification(), "");
}

TEST(ToProto, EveryState) {
  const std::pair<manager::CopyState, const char*> states[] = {
      {manager::CopyState::kPending, "pending"},
      {manager::CopyState::kStarting, "starting"},
      {manager::CopyState::kInProgress, "in-progress"},
      {manager::CopyState::kReady, "ready"},
      {manager::CopyState::kFailed, "failed"},
      {manager::CopyState::kUnknown, "unknown"}};
  for (const auto& [state, word] : states) {
    v1::Image proto;
    ToProto(manager::ImageStatus{.state = state, .copies = {{.state = state}}},
            &proto);
    EXPECT_EQ(proto.state(), word);
    EXPECT_EQ(proto.copies(0).state(), word);
  }
  const std::pair<manager::VerifyState, const char*> verifications[] = {
      {manager::VerifyState::kNever, ""},
      {manager::VerifyState::kRunning, "running"},
      {manager::VerifyState::kOk, "ok"},
      {manager::VerifyState::kFailed, "failed"}};
  for (const auto& [state, word] : verifications) {
    v1::Copy proto;
    ToProto(manager::CopyStatus{.verify = state}, &proto);
    EXPECT_EQ(proto.verification(), word);
  }
}

TEST(ToProto, Image) {
  manager::ImageStatus image;
  image.spec.name = "a";
  image.message = "bad \xff path";
  image.copies.resize(2);
  image.format = "qcow2";
  image.size = 1;
  image.virtual_size = 2;
  image.real_size = 3;
  image.current_sha512 = base::Digest();
  image.revision = 4;
  v1::Image proto;
  ToProto(image, &proto);
  EXPECT_EQ(proto.spec().name(), "a");
  EXPECT_EQ(proto.message(), "bad \xEF\xBF\xBD path");
  EXPECT_EQ(proto.copies_size(), 2);
  EXPECT_EQ(proto.format(), "qcow2");
  EXPECT_EQ(proto.size(), 1u);
  EXPECT_EQ(proto.virtual_size(), 2u);
  EXPECT_EQ(proto.real_size(), 3u);
  EXPECT_EQ(proto.current_sha512(), std::string(128, '0'));
  EXPECT_EQ(proto.current_sha256(), "");
  EXPECT_EQ(proto.revision(), 4u);
}

TEST(ToProto, Disk) {
  v1::Disk proto;
  ToProto(manager::DiskStatus{"u", "/p", "owned", "m", 10, 5, 3, 2}, &proto);
  EXPECT_EQ(proto.uuid(), "u");
  EXPECT_EQ(proto.path(), "/p");
  EXPECT_EQ(proto.state(), "owned");
  EXPECT_EQ(proto.message(), "m");
  EXPECT_EQ(proto.total_bytes(), 10u);
  EXPECT_EQ(proto.available_bytes(), 5u);
  EXPECT_EQ(proto.epoch(), 3u);
  EXPECT_EQ(proto.images(), 2u);
}

TEST(ToProto, Event) {
  using Type = manager::Event::Type;
  v1::WatchResponse proto;
  manager::Event event;
  event.image.spec.name = "a";
  event.image.spec.uuid = "u";
  event.image.size = 5;
  event.resume_token = "t";
  ToProto(event, &proto);
  EXPECT_EQ(proto.type(), v1::WatchResponse::TYPE_IMAGE);
  EXPECT_EQ(proto.image().size(), 5u);
  EXPECT_EQ(proto.resume_token(), "t");
  event.type = Type::kRemoved;
  ToProto(event, &proto);
  EXPECT_EQ(proto.type(), v1::WatchResponse::TYPE_REMOVED);
  EXPECT_EQ(proto.image().spec().name(), "a");
  EXPECT_EQ(proto.image().spec().uuid(), "u");
  EXPECT_EQ(proto.image().size(), 0u);
  event.type = Type::kSnapshotBegin;
  ToProto(event, &proto);
  EXPECT_EQ(proto.type(), v1::WatchResponse::TYPE_SNAPSHOT_BEGIN);
  EXPECT_FALSE(proto.has_image());
  event.type = Type::kSnapshotEnd;
  ToProto(event, &proto);
  EXPECT_EQ(proto.type(), v1::WatchResponse::TYPE_SNAPSHOT_END);
}

TEST(ToProto, VerifyProgress) {
  v1::VerifyResponse proto;
  ToProto(manager::VerifyProgress{1, 2, false, true, "m"}, &proto);
  EXPECT_EQ(proto.verified_bytes(), 1u);
  EXPECT_EQ(proto.total_bytes(), 2u);
  EXPECT_FALSE(proto.done());
  EXPECT_FALSE(proto.ok());  // means nothing before the end
  EXPECT_EQ(proto.message(), "m");
  ToProto(manager::VerifyProgress{2, 2, true, true, "", 3}, &proto);
  EXPECT_EQ(proto.repaired_chunks(), 3u);
  EXPECT_TRUE(proto.done());
  EXPECT_TRUE(proto.ok());
  EXPECT_FALSE(proto.has_image());
}

TEST(ToProto, TimeBeforeTheEpoch) {
  google::protobuf::Timestamp proto;
  ToProto(system_clock::time_point(std::chrono::milliseconds(-1)), &proto);
  EXPECT_EQ(proto.seconds(), -1);
  EXPECT_EQ(proto.nanos(), 999'000'000);
}

}  // namespace
}  // namespace bim::api
