from isonet_det_main import main

if __name__ == "__main__":
    main()
