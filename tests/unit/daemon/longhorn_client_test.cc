#include "daemon/longhorn_client.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "pkg/meta/version.h"

namespace bim::daemon {
namespace {

::bimrpc::BackingImageResponse Image(const std::string& name) {
  ::bimrpc::BackingImageResponse image;
  image.mutable_spec()->set_name(name);
  image.mutable_spec()->set_uuid("u");
  image.mutable_spec()->set_size(5'000'000'000);
  image.mutable_spec()->set_virtualsize(7);
  image.mutable_spec()->set_realsize(3);
  image.mutable_spec()->set_checksum("wanted");
  image.mutable_status()->set_state("failed");
  image.mutable_status()->set_checksum("found");
  image.mutable_status()->set_sending_reference(2);
  image.mutable_status()->set_error_msg("no \"space\"\xFF");
  image.mutable_status()->set_sender_manager_address("h:1");
  image.mutable_status()->set_progress(40);
  return image;
}

TEST(RenderLonghornImage, IsIndentedByATabInAFixedOrder) {
  EXPECT_EQ(RenderLonghornImage(Image("n")),
            "{\n"
            "\t\"name\": \"n\",\n"
            "\t\"uuid\": \"u\",\n"
            "\t\"size\": 5000000000,\n"
            "\t\"virtualSize\": 7,\n"
            "\t\"realSize\": 3,\n"
            "\t\"expectedChecksum\": \"wanted\",\n"
            "\t\"status\": {\n"
            "\t\t\"state\": \"failed\",\n"
            "\t\t\"currentChecksum\": \"found\",\n"
            "\t\t\"sendingReference\": 2,\n"
            "\t\t\"errorMsg\": \"no \\\"space\\\"\xEF\xBF\xBD\",\n"
            "\t\t\"senderManagerAddress\": \"h:1\",\n"
            "\t\t\"progress\": 40\n"
            "\t}\n"
            "}\n");
}

TEST(RenderLonghornList, IsAMapByNameInOrder) {
  EXPECT_EQ(RenderLonghornList({}), "{}\n");
  ::bimrpc::ListResponse images;
  for (const char* name : {"c", "a", "b"}) {
    (*images.mutable_backing_images())[name] = Image(name);
  }
  const auto json = nlohmann::ordered_json::parse(RenderLonghornList(images));
  std::string names;
  for (const auto& [name, image] : json.items()) {
    names += name;
    EXPECT_EQ(image["name"], name);
  }
  EXPECT_EQ(names, "abc");
}

TEST(RenderLonghornVersion, HasNullForAServerThatWasNotAsked) {
  const auto alone = nlohmann::json::parse(RenderLonghornVersion({}));
  EXPECT_TRUE(alone["serverVersion"].is_null());
  EXPECT_EQ(alone["clientVersion"]["version"], meta::Version());
  EXPECT_EQ(alone["clientVersion"]["gitCommit"], meta::GitCommit());
  EXPECT_EQ(alone["clientVersion"]["buildDate"], meta::BuildDate());
  EXPECT_EQ(alone["clientVersion"]["backingImageManagerAPIVersion"],
            meta::kLonghornApiVersion);
  EXPECT_EQ(alone["clientVersion"]["backingImageManagerAPIMinVersion"],
            meta::kLonghornApiMinVersion);
  ::bimrpc::VersionResponse server;
  server.set_version("v1.9.0");
  server.set_gitcommit("abc");
  server.set_builddate("today");
  server.set_backing_image_manager_api_version(5);
  server.set_backing_image_manager_api_min_version(4);
  const auto both = nlohmann::json::parse(RenderLonghornVersion(server));
  const nlohmann::json expected = {{"version", "v1.9.0"},
                                   {"gitCommit", "abc"},
                                   {"buildDate", "today"},
                                   {"backingImageManagerAPIVersion", 5},
                                   {"backingImageManagerAPIMinVersion", 4}};
  EXPECT_EQ(both["serverVersion"], expected);
}

}  // namespace
}  // namespace bim::daemon
