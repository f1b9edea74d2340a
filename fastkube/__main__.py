from fastkube.cli import main

main()
